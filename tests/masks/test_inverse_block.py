"""Inverse block masks: the visible block, what is predicted of the rest, and a real run."""

from itertools import combinations

import lightning.pytorch as pl
import pytest
import torch

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.functional.choice import scores
from hjepa_pl.functional.counters import Stream, hash_int, uniform
from hjepa_pl.masks import MaskConfig, build_masks
from hjepa_pl.masks.base import min_visible
from hjepa_pl.types import ConfigError, Counters
from tests.conftest import SMALL_PREDICTOR, TINY

CASES = [((8, 8), (1,)), ((8, 8), (1, 2)), ((14, 14), (1, 2)), ((16, 16), (1, 2, 4)), ((8, 14), (1, 2)), ((4, 4), (1,))]


def make(grid=(8, 8), cells=(1,), seed=3, **keys):
    return build_masks(MaskConfig(kind="inverse_block", **keys), grid, cells, seed)


@pytest.mark.parametrize(("grid", "cells"), CASES)
def test_visible_is_a_constant_number_within_a_block_and_nothing_of_it_is_predicted(grid, cells) -> None:
    masks, patches = make(grid, cells), grid[0] * grid[1]
    assert {shape.visible for shape in masks.shapes} == {round(0.4 * patches)}
    assert masks.shapes[0].visible >= min_visible(patches)
    for step in range(8):
        shape, found = masks.shape_of(step), masks(Counters(1, step, torch.arange(30)))
        assert found.context.shape == (30, shape.visible)
        for image in range(30):
            seen = set(found.context[image].tolist())
            assert len(seen) == shape.visible
            rows, columns = ({p // grid[1] for p in seen}, {p % grid[1] for p in seen})
            for found_at, side, length in ((rows, grid[0], shape.height), (columns, grid[1], shape.width)):
                starts = [{(s + i) % side for i in range(length)} for s in range(0, side, masks.cell)]
                assert any(found_at <= start for start in starts)
            regions = []
            for cell, targets in zip(cells, found.targets, strict=True):
                asked = targets[image].flatten().tolist()
                assert targets.shape[1] == 1
                assert len(set(asked)) == len(asked)
                wide = grid[1] // cell
                regions.append({
                    (c // wide * cell + i) * grid[1] + c % wide * cell + j
                    for c in asked for i in range(cell) for j in range(cell)
                })  # fmt: skip
            assert not regions[0] & seen
            assert all(region == regions[0] for region in regions)
            hidden = patches - shape.height * shape.width
            assert len(regions[0]) == max(1, round(0.75 * hidden / masks.cell**2)) * masks.cell**2


def test_masks_equal_a_slow_sampler_of_the_same_draws() -> None:
    """An independent loop over images, in plain Python."""
    grid, cell, masks = (8, 12), 2, make((8, 12), (1, 2), seed=5, predicted=0.5)
    counters = Counters(2, 4, torch.arange(50, 150))
    found, shape = masks(counters), masks.shape_of(4)
    u = uniform(hash_int(5, 2, Stream.BLOCK_PLACE), counters.position, 2).tolist()
    of_patches = scores(hash_int(5, 2, Stream.KEEP), counters.position, 96).tolist()
    of_cells = scores(hash_int(hash_int(5, 2, Stream.KEEP), 1), counters.position, 24).tolist()
    corners = set()
    for image in range(100):
        sizes = zip(u[image], grid, strict=True)
        top, left = (cell * int(draw * (side // cell)) for draw, side in sizes)
        corners.add((top, left))
        block = {((top + i) % 8, (left + j) % 12) for i in range(shape.height) for j in range(shape.width)}
        inside = sorted((y * 12 + x for y, x in block), key=lambda p: of_patches[image][p])
        assert set(found.context[image].tolist()) == set(inside[: shape.visible])
        hidden = [c for c in range(24) if (c // 6 * cell, c % 6 * cell) not in block]
        hidden.sort(key=lambda c: of_cells[image][c])
        assert set(found.targets[1][image, 0].tolist()) == set(hidden[: round(0.5 * len(hidden))])
    assert len(corners) > 3


def test_every_patch_is_seen_and_predicted_equally_often_and_forms_vary() -> None:
    masks = make((14, 14), (1,))
    assert len({shape[:2] for shape in masks.shapes}) > 2
    seen, wanted = torch.zeros(196), torch.zeros(196)
    for step in range(20):
        found = masks(Counters(0, step, torch.arange(64) + 64 * step))
        seen += torch.bincount(found.context.flatten(), minlength=196)
        wanted += torch.bincount(found.targets[0].flatten(), minlength=196)
    for counts in (seen, wanted):  # of 1,280 draws: 5 standard deviations
        assert (counts - counts.mean()).abs().max() < 5 * (1280 * 0.25) ** 0.5


def test_draws_depend_on_counters_only() -> None:
    masks = make()
    whole, half = masks(Counters(0, 3, torch.arange(16))), masks(Counters(0, 3, torch.arange(8, 16)))
    assert torch.equal(whole.context[8:], half.context)
    assert torch.equal(whole.targets[0][8:], half.targets[0])
    assert not torch.equal(whole.context, masks(Counters(1, 3, torch.arange(16))).context)
    several = make(per_image=3)(Counters(0, 3, torch.arange(16)))
    assert torch.equal(several.context[:16], whole.context)
    assert len(several.context[[0, 16, 32]].sort(dim=1).values.unique(dim=0)) == 3


def test_each_key_acts() -> None:
    counters = Counters(0, 0, torch.arange(8))
    base = make((14, 14))(counters)
    assert make((14, 14), ratio=0.7)(counters).context.shape[1] == round(0.3 * 196) < base.context.shape[1]
    assert make((14, 14), predicted=0.5)(counters).targets[0].shape[2] < base.targets[0].shape[2]
    assert all(s.height > s.width for s in make((14, 14), aspect_ratio=[1.2, 2.0]).shapes)


@pytest.mark.parametrize(("keys", "message"), [
    ({"ratio": 0.9}, "invalid `masks.ratio=0.9`: leaves 6 of 64 patches visible; use 0.62 or less."),
    ({"aspect_ratio": [3.0, 4.0]}, "invalid `masks.ratio=0.6`: no block of whole cells of 1 holds the 26 visible of"),
    ({"predicted": 0.0}, r"invalid `masks.predicted=0`: must be a number in \(0, 1\]"),
    ({"num_targets": 2}, "invalid `masks.num_targets=2`: has no effect with masks.kind=inverse_block; remove it."),
    ({"kind": "multiblock", "predicted": 0.5}, "invalid `masks.predicted=0.5`: has no effect with masks.kind=multi"),
    ({"kind": "random", "predicted": 0.5}, "invalid `masks.predicted=0.5`: has no effect with masks.kind=random"),
])  # fmt: skip
def test_what_cannot_be_is_refused(keys, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_masks(MaskConfig(**({"kind": "inverse_block"} | keys)), (8, 8), (1,), 0)
    assert "\n" not in str(caught.value)


def module_of(**settings) -> HJEPALightningModule:
    torch.manual_seed(0)
    defaults = {"encoder": TINY | {"in_chans": 1}, "predictor": SMALL_PREDICTOR, "levels": [{"cell": 1}, {"cell": 2}]}
    return HJEPALightningModule(**(defaults | settings))


def test_separate_targets_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"invalid `predictor\.targets=separate`: has no effect with masks\.kind=inv"):
        module_of(masks={"kind": "inverse_block"}, predictor=SMALL_PREDICTOR | {"targets": "separate"})


def test_a_trainer_trains_otherwise_than_with_blocks() -> None:
    weights = []
    for masks in ({}, {"kind": "inverse_block"}, {"kind": "inverse_block", "per_image": 2}):
        module = module_of(masks=masks)
        data = MultiDatasetDataModule(
            datasets=[{"name": "digits"}], batch_size=16, views=1, epoch_size=64,
            augmentation={"gray": 0.0, "jitter": [0.4, 0.4, 0.0, 0.0]},
        )  # fmt: skip
        pl.Trainer(
            accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, data)  # fmt: skip
        weights.append(module.context_encoder.vit.blocks[0].mlp.fc1.weight.detach().clone())
        assert torch.isfinite(weights[-1]).all()
    assert not any(torch.equal(a, b) for a, b in combinations(weights, 2))
