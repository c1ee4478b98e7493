"""Several masks of an image in a step (`masks.per_image`), against one computation a mask."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.evaluation import prediction_gain
from hjepa_pl.functional.tokens import gather_tokens
from hjepa_pl.losses.prediction import prediction_loss
from hjepa_pl.masks import MaskConfig, build_masks
from hjepa_pl.types import ConfigError, Counters, LevelState, Masks
from tests.conftest import SMALL_PREDICTOR, SMALL_PROJECTOR, TINY, make_batch

KINDS = [("multiblock", True), ("multiblock", False), ("hierarchical", True), ("hierarchical", False), ("random", True)]


@pytest.mark.parametrize(("kind", "joint"), KINDS)
def test_masks_are_distinct_and_the_first_are_those_of_one(kind, joint) -> None:
    one, two, four = (
        build_masks(MaskConfig(kind=kind, per_image=m), (14, 14), (1, 2), 3, joint)(Counters(1, 5, torch.arange(16)))
        for m in (1, 2, 4)
    )
    for a, b, c in zip(*((m.context, *m.targets) for m in (one, two, four)), strict=True):
        assert len(a) == 16
        assert torch.equal(a, b[:16])
        assert torch.equal(b, c[:32])
        assert len(c) == 64
    contexts = four.context.sort(dim=1).values.unflatten(0, (4, 16))
    for image in range(16):
        assert len(contexts[:, image].unique(dim=0)) == 4
    for row in range(64):
        assert not set(four.context[row].tolist()) & set(four.targets[0][row].flatten().tolist())


def test_masks_of_an_image_do_not_depend_on_the_rest_of_the_batch() -> None:
    masks = build_masks(MaskConfig(per_image=3), (8, 8), (1,), 0)
    whole, half = (masks(Counters(0, 2, torch.arange(first, 16))) for first in (0, 8))
    assert torch.equal(whole.context.unflatten(0, (3, 16))[:, 8:].flatten(0, 1), half.context)


def test_gathering_several_selections_of_each_row() -> None:
    tokens, index = torch.randn(3, 10, 4), torch.randint(10, (6, 5))
    slow = torch.stack([torch.stack([tokens[row % 3, i] for i in index[row]]) for row in range(6)])
    assert torch.equal(gather_tokens(tokens, index), slow)


def make(**settings) -> HJEPALightningModule:
    torch.manual_seed(0)
    defaults = {
        "encoder": TINY, "predictor": SMALL_PREDICTOR, "levels": [{"cell": 1}, {"cell": 2}], "masks": {"per_image": 3}
    }  # fmt: skip
    return HJEPALightningModule(**(defaults | settings)).eval()


def rows_of(masks: Masks, number: int, images: int = 8) -> Masks:
    rows = slice(number * images, (number + 1) * images)
    return Masks(masks.context[rows], tuple(t[rows] for t in masks.targets))


IMAGE = {
    "levels": [{"cell": 1}, {"cell": 2}, {"cell": "image", "masked_view": "add"}], "projector": SMALL_PROJECTOR
}  # fmt: skip
CASES = {
    "joint": {},
    "raw, cosine": {"level_scale": "raw", "prediction": "cosine"},
    "separate": {"predictor": SMALL_PREDICTOR | {"targets": "separate"}},
    "cross": {"predictor": SMALL_PREDICTOR | {"attention": "cross"}},
    "hierarchical": {"masks": {"kind": "hierarchical", "per_image": 3}},
    "random": {"masks": {"kind": "random", "per_image": 3}},
    "fused": {"levels": [{"block": 1}, {"cell": 2}], "predictor": SMALL_PREDICTOR | {"context": "fused"}},
    "instance, 2 blocks": {"target_norm": "instance", "target_blocks": 2},
    "rope": {"encoder": TINY | {"position": "rope_mixed"}},
    "pyramid": {"pyramid": {"dim": 16}},
    "image": IMAGE,
    "no average": {"ema": None, "experimental": True},
}


def by_mask(module: HJEPALightningModule, batch) -> list[dict[str, Tensor]]:
    """The terms of one step for each mask alone: the objective called with that mask's rows."""
    drawn, found = module.masks(batch.counters), []
    for number in range(3):
        single = make(**module.remade)
        single.load_state_dict(module.state_dict())
        single.masks = lambda counters, n=number: rows_of(drawn, n)
        found.append(single.compute(batch)[1])
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_the_mean_over_masks_and_the_target_encoder_runs_once(case) -> None:
    module, batch = make(**CASES[case]), make_batch(views=2 if case == "image" else 1)
    module.remade = CASES[case] | {"masks": CASES[case].get("masks", {}) | {"per_image": 1}}
    passes = []
    for name in ("target_encoder", "context_encoder", "predictor"):
        if (net := getattr(module, name)) is not None:
            net.register_forward_hook(lambda m, args, out, name=name: passes.append((name, len(args[0]))))
    record = module.compute(batch)[1]
    expected = {"joint": [("target_encoder", 8), ("context_encoder", 24), ("predictor", 24)]}
    if case in expected:
        assert passes == expected[case]
    assert sum(name == "target_encoder" for name, _ in passes) == (0 if case == "no average" else 1)
    singles = by_mask(module, batch)
    names = [level.name for level in module.token_levels] + (["pyramid"] if case == "pyramid" else [])
    for name in names:
        slow = torch.stack([single.terms[name] for single in singles]).mean()
        torch.testing.assert_close(record.terms[name], slow, rtol=1e-5, atol=1e-7)
    shares = record.prediction_by_image()
    assert shares.shape == (8,)
    if case != "image":
        slow = torch.stack([single.prediction_by_image() for single in singles]).mean(dim=0)
        torch.testing.assert_close(shares, slow, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(record.total(), torch.stack([s.total() for s in singles]).mean(), rtol=1e-5, atol=0)


def test_the_loss_written_out_by_hand() -> None:
    """Without the objective's code: encoder, predictor and distance for each mask."""
    module, batch = make(level_scale="raw"), make_batch(views=1)
    drawn, losses = module.masks(batch.counters), []
    for number in range(3):
        masks = rows_of(drawn, number)
        tokens = module.context_encoder(batch.views[0], masks.context)["last"]
        said = module.predictor(tokens, masks.context, masks.targets)
        maps = module.tokens.target_maps(batch.views[0])
        for prediction, target_map, cells in zip(said, maps, masks.targets, strict=True):
            target = torch.stack([target_map[b, cells[b].flatten()] for b in range(8)])
            losses.append(prediction_loss(prediction, target, "smooth_l1"))
    torch.testing.assert_close(module.compute(batch)[0], torch.stack(losses).sum() / 3, rtol=1e-5, atol=1e-7)


def test_one_mask_is_the_default_to_the_bit() -> None:
    default, one = make(masks={}), make(masks={"per_image": 1})
    losses = [module.compute(make_batch(views=1))[0] for module in (default, one)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("masked_view", ["add", "replace"])
def test_each_masks_visible_patches_are_a_view(masked_view) -> None:
    level = {"cell": "image", "masked_view": masked_view}
    module, batch = make(levels=[{"cell": 1}, level], projector=SMALL_PROJECTOR), make_batch()
    drawn = module.masks(batch.counters)
    pooled = [module.context_encoder(batch.views[0], rows_of(drawn, m).context)["last"].mean(1) for m in range(3)]
    full = batch.views[1:] if masked_view == "replace" else batch.views
    pooled += [module.context_encoder(view)["last"].mean(1) for view in full]
    z = module.projector(torch.cat(pooled)).unflatten(0, (len(pooled), -1))
    expected = (z - z[3:].mean(dim=0)).square().mean()
    torch.testing.assert_close(module.compute(batch)[1].terms["image"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["sigreg", "vicreg"])
@pytest.mark.parametrize("stream", ["tokens", "last_c2"])
def test_regularizers_of_tokens_compare_different_images_those_of_the_first_mask(stream, kind) -> None:
    terms = {"regularizers": [{"kind": kind, "stream": stream}]}
    one, three = make(masks={}, **terms), make(**terms)
    values = [module.compute(make_batch(views=1))[1].terms[f"{kind}_{stream}"] for module in (one, three)]
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-7)


def test_what_the_monitor_reads_is_of_all_masks_and_of_each_image_once() -> None:
    module, batch = make(), make_batch(views=1)
    module.remade = {"masks": {}}
    record = module.compute(batch)[1]
    singles = by_mask(module, batch)
    for name, state in record.levels.items():
        parts = [single.levels[name] for single in singles]
        assert state.target_map.shape[0] == 8
        for field in ("prediction", "target", "cells"):
            joined = torch.cat([getattr(part, field) for part in parts])
            torch.testing.assert_close(getattr(state, field), joined, rtol=1e-4, atol=1e-5)
        wide = LevelState(*(torch.cat([getattr(p, f) for p in parts], dim=1) for f in LevelState._fields[:3]),
                          state.target_map)  # fmt: skip
        torch.testing.assert_close(prediction_gain(state), prediction_gain(wide), rtol=1e-4, atol=1e-5)
    assert len(record.streams["tokens"].embedding) == 8


def data(**settings) -> MultiDatasetDataModule:
    return MultiDatasetDataModule(
        datasets=[{"name": "digits"}], batch_size=16, epoch_size=64,
        augmentation={"gray": 0.0, "jitter": [0.4, 0.4, 0.0, 0.0]}, **({"views": 2} | settings),
    )  # fmt: skip


def fitted(folder: Path, resume: Path | None = None, **settings) -> dict[str, Tensor]:
    """Train six steps, with a checkpoint after each third; return the weights."""
    module = make(**({"encoder": TINY | {"in_chans": 1, "drop_path_rate": 0.1}} | settings))
    keeper = ModelCheckpoint(dirpath=folder, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=6, logger=False, callbacks=[keeper], enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data(views=2 if module.image_level else 1), ckpt_path=resume)
    return module.state_dict()


def test_a_trainer_trains_otherwise_than_with_one_and_resumes_to_the_bit(tmp_path) -> None:
    levels = {"levels": [{"cell": 1}, {"cell": "image", "masked_view": "replace"}], "projector": SMALL_PROJECTOR}
    whole = fitted(tmp_path / "a", **levels)
    one = fitted(tmp_path / "b", masks={}, **levels)
    name = "context_encoder.vit.blocks.0.mlp.fc1.weight"
    assert torch.isfinite(whole[name]).all()
    assert not torch.equal(whole[name], one[name])
    again = fitted(tmp_path / "c", resume=tmp_path / "a" / "step=3.ckpt", **levels)
    assert all(torch.equal(whole[key], again[key]) for key in whole)


@pytest.mark.parametrize(("settings", "message"), [
    ({"masks": {"per_image": 0}}, "invalid `masks.per_image=0`: must be a whole number >= 1"),
    ({"masks": {"per_image": 2, "strategy": "cross_crop_prediction"}},
     "invalid `masks.per_image=2`: cannot be combined with several crops .masks.strategy=cross_crop_prediction.; set"),
    ({"masks": {"per_image": 2, "strategy": "global_with_local_context"}}, "invalid `masks.per_image=2`: cannot be"),
    ({"masks": {"per_image": 2}, "levels": [{"cell": "image"}], "predictor": {}},
     "invalid `masks`: has no effect without a token level"),
])  # fmt: skip
def test_what_cannot_be_is_refused(settings, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(**settings)
    assert "\n" not in str(caught.value)
