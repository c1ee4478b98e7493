"""Image levels of several depths: each compares the same views through a projector of its own."""

import lightning.pytorch as pl
import pytest
import torch

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.losses import NTXent, SIGReg
from hjepa_pl.types import ConfigError
from tests.conftest import SMALL_PROJECTOR, TINY, make_batch

GRAY = {"jitter": [0.4, 0.4, 0.0, 0.0], "gray": 0.0}
INNER = [{"block": 1, "cell": "image", "weight": 0.5}, {"cell": "image"}]


def module(levels=INNER, channels=3, **keys):
    tokens = {"predictor": {"embed_dim": 24, "depth": 1, "num_heads": 2}} if {"cell": 1} in levels else {}
    return HJEPALightningModule(
        encoder=TINY | {"in_chans": channels}, levels=levels, projector=SMALL_PROJECTOR, seed=3, **tokens, **keys
    )


def gradient(levels, **keys):
    """Return the gradient of each block of the encoder, by the name of its parameters."""
    torch.manual_seed(0)
    net = module(levels, **keys).train()
    net.compute(make_batch(views=2))[0].backward()
    return net, {n: p.grad for n, p in net.context_encoder.named_parameters() if p.grad is not None}


def test_the_terms_are_those_of_each_depth_alone() -> None:
    """Slow way: timm's own blocks, pooled and projected by hand."""
    net, batch = module().eval(), make_batch(views=2)
    _, record = net.compute(batch)
    tokens = []
    hook = net.context_encoder.vit.blocks[0].register_forward_hook(lambda m, i, out: tokens.append(out))
    last = net.context_encoder(torch.cat(batch.views))["last"]
    hook.remove()
    first = torch.nn.functional.layer_norm(tokens[0], tokens[0].shape[-1:])
    for name, x, projector in (("image", last, net.projector), ("b1_image", first, net.inner_projectors["b1_image"])):
        z = projector(x.mean(dim=1)).unflatten(0, (2, -1))
        slow = (z - z.mean(dim=0)).square().mean()
        torch.testing.assert_close(record.terms[name], slow, rtol=1e-4, atol=1e-6)
    assert {"sigreg_image", "sigreg_b1_image", "b1_image_weighted"} <= record.terms.keys()
    assert record.terms["sigreg_b1_image_weighted"] == 0.5 * 5.0 * record.terms["sigreg_b1_image"]
    weights = {"image": 1.0, "b1_image": 0.5, "sigreg_image": 5.0, "sigreg_b1_image": 2.5}
    total = sum(weight * record.terms[name].item() for name, weight in weights.items())
    assert record.total().item() == pytest.approx(total, rel=1e-5)


def test_an_inner_level_changes_the_gradient_of_its_blocks_and_of_no_later_one() -> None:
    _, plain = gradient([{"cell": "image"}])
    net, both = gradient(INNER)
    assert net.inner_projectors is not None
    assert module([{"cell": "image"}]).inner_projectors is None
    for name, grad in both.items():
        block = name.split(".")[2] if ".blocks." in name else "0"
        assert torch.equal(grad, plain[name]) == (block != "0" or name.startswith("vit.norm")), name
    assert all(p.grad is not None for p in net.inner_projectors.parameters())


def test_views_and_comparison_are_those_of_the_deepest() -> None:
    net = module([{"block": 2, "cell": "image"}, {"cell": "image", "compare": "none", "keep": 0.5}],
                 regularizers=[NTXent(weight=1.0)])  # fmt: skip
    _, record = net.compute(make_batch(views=2))
    assert record.terms.keys() == {"ntxent_image", "ntxent_b2_image"}
    assert record.streams["tokens"].embedding.shape[1] == 32  # half of 64 patches


def test_with_token_levels_a_masked_view_and_crops() -> None:
    levels = [{"cell": 1}, {"block": 2, "cell": "image"}, {"cell": "image", "masked_view": "replace"}]
    batch = make_batch(views=2)
    _, record = module(levels).compute(batch)
    assert {"last_c1", "image", "b2_image", "sigreg_b2_image"} <= record.terms.keys()
    crops = batch._replace(local_views=(torch.randn(len(batch.label), 3, 16, 16),) * 2)
    _, with_crops = module(INNER).compute(crops)
    _, without = module(INNER).compute(batch)
    assert with_crops.terms["b1_image"] != without.terms["b1_image"]


def test_trains_and_loads(tmp_path) -> None:
    def fit(net, steps):
        pl.seed_everything(0, verbose=False)
        data = MultiDatasetDataModule(datasets=["digits"], batch_size=32, views=2, augmentation=GRAY)
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(net, data)
        trainer.save_checkpoint(tmp_path / "run.ckpt")

    net, fresh = module(channels=1), module(channels=1)
    fit(net, 3)
    loaded = HJEPALightningModule.load_from_checkpoint(tmp_path / "run.ckpt")
    for name, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    for name, value in net.inner_projectors.named_parameters():
        assert not torch.equal(value, fresh.inner_projectors.get_parameter(name)), name


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([{"block": 1, "cell": "image", "keep": 0.5}, {"cell": "image"}],
         r"invalid `levels.keep=0.5`: is for the deepest image level; set it on the one with block: last."),
        ([{"block": 1, "cell": "image", "compare": "pairwise"}, {"block": 2, "cell": "image"}, {"cell": 1}],
         r"invalid `levels.compare=pairwise`: is for the deepest image level; set it on the one with block: 2."),
        ([{"block": 7, "cell": "image"}, {"cell": "image"}], r"invalid `levels.block=7`: must be 1 to 2, or last"),
        ([{"cell": "image"}, {"cell": "image"}], r"is listed twice"),
    ],
)  # fmt: skip
def test_bad_levels(levels, message) -> None:
    with pytest.raises(ConfigError, match=message):
        module(levels)


def test_a_regularizer_acts_on_every_image_level() -> None:
    net = module(regularizers=[SIGReg(weight=3.0)])
    _, record = net.compute(make_batch(views=2))
    assert record.terms["sigreg_b1_image_weighted"] == 3.0 * 0.5 * record.terms["sigreg_b1_image"]
