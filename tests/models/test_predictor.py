import pytest
import torch

from hjepa_pl.functional.tokens import pool_cells, sincos_positions
from hjepa_pl.models.config import PredictorConfig
from hjepa_pl.models.predictor import Predictor

CELLS = (1, 2)


def run(config: PredictorConfig, context=None, targets=None):
    torch.manual_seed(0)
    predictor = Predictor(config, embed_dim=48, grid=(8, 8), cells=CELLS).eval()
    context = torch.randn(2, 20, 48) if context is None else context
    index = torch.arange(20).expand(2, -1)
    if targets is None:
        targets = (
            torch.arange(32, 48).reshape(1, 2, 8).expand(2, -1, -1),
            torch.arange(8, 12).reshape(1, 2, 2).expand(2, -1, -1),
        )
    return predictor(context, index, targets), targets


@pytest.mark.parametrize(("attention", "blocks"), [("self", "joint"), ("self", "separate"), ("cross", "joint")])
def test_shapes(attention, blocks) -> None:
    config = PredictorConfig(embed_dim=24, depth=2, num_heads=2, attention=attention, targets=blocks)
    (fine, coarse), _ = run(config)
    assert fine.shape == (2, 16, 48)
    assert coarse.shape == (2, 4, 48)


def test_separate_blocks_do_not_see_one_another_and_joint_ones_do() -> None:
    for blocks, alone in (("separate", True), ("joint", False)):
        config = PredictorConfig(embed_dim=24, depth=2, num_heads=2, targets=blocks)
        context = torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(1))
        (both, _), targets = run(config, context)
        (first, _), _ = run(config, context, tuple(t[:, :1] for t in targets))
        assert torch.allclose(both[:, :8], first, atol=1e-6) is alone


def test_cross_attention_queries_see_the_context_only() -> None:
    context = torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(1))
    config = PredictorConfig(embed_dim=24, depth=2, num_heads=2, attention="cross")
    (both, _), targets = run(config, context)
    (first, _), _ = run(config, context, tuple(t[:, :1] for t in targets))
    torch.testing.assert_close(both[:, :8], first, atol=1e-6, rtol=1e-5)
    (other, _), _ = run(config, context + 1.0)
    assert not torch.allclose(both, other)


def test_positions_and_levels_reach_the_queries() -> None:
    config = PredictorConfig(embed_dim=24, depth=2, num_heads=2)
    (fine, coarse), _ = run(config)
    assert (fine[:, 0] - fine[:, 1]).abs().max() > 1e-3  # another place, another prediction
    assert (fine[:, :4] - coarse).abs().max() > 1e-3


def test_a_cell_lies_at_the_centre_of_its_patches() -> None:
    """The angle of a cell is the mean of its patches' angles: its rows' cosine lies between theirs."""
    patches, cells = sincos_positions((8, 8), 16), sincos_positions((8, 8), 16, cell=2)
    mean = pool_cells(patches[None, :, 3:4], (8, 8), 2)[0]
    torch.testing.assert_close(cells[:, 3:4], mean, atol=1e-4, rtol=1e-3)
    assert cells.shape == (16, 16)


def test_checkpointing_keeps_gradients() -> None:
    gradients = []
    for on in (False, True):
        torch.manual_seed(0)
        config = PredictorConfig(embed_dim=24, depth=2, num_heads=2, grad_checkpointing=on)
        predictor = Predictor(config, 48, (8, 8), CELLS).train()
        context = torch.randn(2, 20, 48, generator=torch.Generator().manual_seed(1))
        targets = (
            torch.arange(32, 48).reshape(1, 2, 8).expand(2, -1, -1),
            torch.arange(8, 12).reshape(1, 2, 2).expand(2, -1, -1),
        )
        sum(p.square().sum() for p in predictor(context, torch.arange(20).expand(2, -1), targets)).backward()
        gradients.append([p.grad for p in predictor.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
