"""Targets of the token levels: norms and means of blocks, against slow computations on the timm model."""

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.evaluation import image_share
from hjepa_pl.objectives.targets import last_blocks, normalize
from hjepa_pl.types import ConfigError
from tests.conftest import SMALL_PREDICTOR, SMALL_PROJECTOR, TINY, make_batch, with_crops

NORMS = ("layer", "instance", "batch")


def slow_norm(x: Tensor, norm: str) -> Tensor:
    """Each statistic in a loop, in float64."""
    x = x.double()
    out = torch.empty_like(x)
    images, tokens, width = x.shape
    if norm == "layer":
        groups = [(i, n, slice(None)) for i in range(images) for n in range(tokens)]
    elif norm == "instance":
        groups = [(i, slice(None), c) for i in range(images) for c in range(width)]
    else:
        groups = [(slice(None), slice(None), c) for c in range(width)]
    for group in groups:
        part = x[group]
        mean = part.sum() / part.numel()
        variance = ((part - mean) ** 2).sum() / part.numel()
        out[group] = (part - mean) / (variance + 1e-5) ** 0.5
    return out


def slow_targets(module: HJEPALightningModule, images: Tensor, norm: str, count: int) -> list[Tensor]:
    """The target maps by the definition: hooks on the timm model's blocks, then norm, mean, cells, layer norm."""
    vit, outputs = module.target_encoder.vit, {}
    hooks = [
        block.register_forward_hook(lambda m, args, out, n=n: outputs.__setitem__(n, out))
        for n, block in enumerate(vit.blocks, 1)
    ]
    outputs["last"] = vit.forward_features(images)
    for hook in hooks:
        hook.remove()
    side, maps = images.shape[-1] // 2, []
    for level in module.token_levels:
        end = len(vit.blocks) if level.block == "last" else level.block
        parts = []
        for number in range(end - count + 1, end + 1):
            final = level.block == "last" and number == end
            tokens = outputs["last"] if final else F.layer_norm(outputs[number], (48,))
            parts.append(tokens.double() if (norm, count) == ("layer", 1) else slow_norm(tokens, norm))
        mean = torch.stack(parts).mean(0).unflatten(1, (side, side))
        cells = F.avg_pool2d(mean.permute(0, 3, 1, 2), int(level.cell)).flatten(2).mT
        maps.append(slow_norm(cells, "layer"))
    return maps


LEVELS = [{"block": 2, "cell": 2}, {"cell": 1}, {"cell": 4}]


def make(**settings) -> HJEPALightningModule:
    torch.manual_seed(0)
    module = HJEPALightningModule(**({"encoder": TINY, "predictor": SMALL_PREDICTOR, "levels": LEVELS} | settings))
    with torch.no_grad():
        for p in module.target_encoder.parameters():  # the final norm's gains too
            p.add_(0.1 * torch.randn_like(p))
    return module


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("count", [1, 2])
def test_target_maps_equal_a_slow_computation_on_the_timm_model(norm, count) -> None:
    module, images = make(target_norm=norm, target_blocks=count), make_batch(images=3).views[0]
    expected = slow_targets(module, images, norm, count)
    for found, slow in zip(module.tokens.target_maps(images), expected, strict=True):
        torch.testing.assert_close(found.double(), slow, atol=1e-4, rtol=1e-4)


def test_all_blocks_may_be_averaged() -> None:
    module, images = make(target_blocks=3, target_norm="instance", levels=[{"cell": 1}]), make_batch(images=2).views[0]
    torch.testing.assert_close(
        module.tokens.target_maps(images)[0].double(), slow_targets(module, images, "instance", 3)[0],
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip
    assert last_blocks("last", 3, depth=3) == (1, 2, "last")


def test_the_default_is_the_layer_norm_of_one_block_to_the_bit() -> None:
    module, images = make(), make_batch().views[0]
    plain = F.layer_norm(module.target_encoder(images)["last"], (48,))
    assert torch.equal(module.tokens.target_maps(images)[1], plain)
    assert module.tokens.depths.target == (2, "last")


def test_the_instance_norm_takes_away_what_all_tokens_of_an_image_share() -> None:
    """data2vec's reason for it: a layer norm leaves it, and predicting it needs no local content."""
    generator = torch.Generator().manual_seed(0)
    image, local = (torch.randn(32, n, 16, generator=generator) for n in (1, 49))
    tokens = 4 * image + local
    assert image_share(normalize(tokens, "layer")) > 0.8
    assert image_share(normalize(tokens, "batch")) > 0.8
    assert normalize(tokens, "instance").mean(dim=1).abs().max() < 1e-5
    assert image_share(normalize(tokens, "instance")) < 0.01


@pytest.mark.parametrize("norm", NORMS)
def test_statistics_are_in_32_bits_under_autocast(norm) -> None:
    tokens = (100 + torch.randn(4, 16, 32)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = normalize(tokens, norm)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), slow_norm(tokens, norm), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_baseline_the_state_and_the_crops_have_these_targets(norm) -> None:
    module = make(
        levels=[{"cell": 1}, {"cell": 2}, {"cell": "image"}], projector=SMALL_PROJECTOR, target_norm=norm,
        target_blocks=2, masks={"strategy": "cross_crop_prediction"},
    ).eval()  # fmt: skip
    batch = with_crops(make_batch())
    record = module.compute(batch)[1]
    slow = slow_targets(module, batch.views[0], norm, 2)
    for state, expected in zip(record.levels.values(), slow, strict=True):
        torch.testing.assert_close(state.target_map.double(), expected, atol=1e-3, rtol=1e-3)
        rows = torch.stack([expected[b, state.cells[b]] for b in range(8)])
        torch.testing.assert_close(state.target[:, : rows.shape[1]].double(), rows, atol=1e-3, rtol=1e-3)
    # The crops' targets: rows of the maps of all masked crops (2 of 4, crop by crop).
    maps = module.tokens.target_maps(torch.cat(batch.local_views[:2]))
    targets = module.crops.encode(batch).targets[0]
    of_first = {tuple(row.tolist()) for row in maps[0][0]} | {tuple(row.tolist()) for row in maps[0][8]}
    assert {tuple(row.tolist()) for row in targets[0]} <= of_first


def test_without_a_target_encoder_the_gradient_goes_through_the_norm() -> None:
    module = HJEPALightningModule(
        encoder=TINY, predictor=SMALL_PREDICTOR, levels=[{"cell": 1}], ema=None, experimental=True,
        target_norm="instance", target_blocks=2,
    )  # fmt: skip
    (target,) = module.tokens.target_maps(make_batch().views[0])
    target[:, 0].sum().backward()
    assert module.context_encoder.vit.blocks[0].mlp.fc1.weight.grad.abs().sum() > 0


def test_weights_and_their_names_do_not_depend_on_the_targets() -> None:
    plain, rich = make(), make(target_norm="instance", target_blocks=2)
    assert list(plain.state_dict()) == list(rich.state_dict())
    assert all(torch.equal(plain.state_dict()[k], v) for k, v in rich.state_dict().items())


def fitted(**settings) -> dict[str, Tensor]:
    module = make(**({"encoder": TINY | {"in_chans": 1}, "levels": [{"cell": 1}]} | settings))
    data = MultiDatasetDataModule(
        datasets=[{"name": "digits"}], batch_size=16, views=1, epoch_size=64,
        augmentation={"gray": 0.0, "jitter": [0.4, 0.4, 0.0, 0.0]},
    )  # fmt: skip
    pl.Trainer(
        accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, data)  # fmt: skip
    return module.state_dict()


def test_each_key_changes_the_weights_of_a_run() -> None:
    runs = [
        fitted(), fitted(target_norm="instance"), fitted(target_norm="batch"), fitted(target_blocks=2),
        fitted(target_blocks=2, target_norm="instance"),
    ]  # fmt: skip
    name = "context_encoder.vit.blocks.0.mlp.fc1.weight"
    for i, one in enumerate(runs):
        assert torch.isfinite(one[name]).all()
        assert not any(torch.equal(one[name], other[name]) for other in runs[:i])


@pytest.mark.parametrize(("settings", "message"), [
    ({"target_norm": "group"}, "invalid `target_norm=group`: must be layer, instance or batch."),
    ({"target_blocks": 0}, "invalid `target_blocks=0`: must be a whole number >= 1."),
    ({"target_blocks": True}, "invalid `target_blocks=true`: must be a whole number >= 1."),
    ({"target_blocks": 4, "levels": [{"cell": 1}]},
     "invalid `target_blocks=4`: must be at most 3, the number of blocks up to levels.block=last."),
    ({"target_blocks": 3}, "invalid `target_blocks=3`: must be at most 2, the number of blocks up to levels.block=2."),
    ({"target_blocks": 2, "levels": [{"cell": "image"}], "predictor": {}},
     "invalid `target_blocks=2`: has no effect without a token level"),
    ({"target_norm": "batch", "levels": [{"cell": "image"}], "predictor": {}},
     "invalid `target_norm=batch`: has no effect without a token level"),
])  # fmt: skip
def test_what_cannot_be_is_refused(settings, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        HJEPALightningModule(**({"encoder": TINY, "predictor": SMALL_PREDICTOR, "levels": LEVELS} | settings))
    assert "\n" not in str(caught.value)
