"""Masks are the same under every precision: whole numbers must not be rounded."""

from contextlib import nullcontext
from functools import cache

import pytest
import torch

from hjepa_pl.masks import MaskConfig, build_masks
from hjepa_pl.types import Counters, Masks
from tests.conftest import SMALL_PREDICTOR

KINDS = ["multiblock", "hierarchical", "random", "inverse_block"]
CASES = [
    ((4, 4), (1, 2)),
    ((8, 8), (1, 2)),
    ((14, 14), (1, 2)),
    ((20, 12), (1, 2, 4)),
    ((28, 28), (1,)),
    ((28, 28), (1, 1)),
    ((32, 32), (1,)),
    ((32, 32), (1, 2)),
    ((48, 48), (1, 3)),
    ((64, 64), (1,)),
    ((64, 64), (1, 2, 4)),
]
PRECISIONS = {
    "none": nullcontext(),
    "bf16": torch.autocast("cpu", torch.bfloat16),
    "fp16": torch.autocast("cpu", torch.float16),
}


@cache  # those without autocast are compared with each
def drawn(kind, grid, cells, precision, images=50) -> list[Masks]:
    with PRECISIONS[precision]:
        masks = build_masks(MaskConfig(kind=kind), grid, cells, seed=11)
        return [masks(Counters(0, step, torch.arange(images) + images * step)) for step in range(6)]


def hidden_patches(found: Masks, grid, cells) -> torch.Tensor:
    """Mark, (B, N), the patches of every cell that any level is asked for."""
    marked = torch.zeros(len(found.context), *grid, dtype=torch.bool)
    for cell, targets in zip(cells, found.targets, strict=True):
        assert targets.min() >= 0
        assert targets.max() < grid[0] * grid[1] // cell**2
        cell_map = torch.zeros(len(targets), grid[0] * grid[1] // cell**2, dtype=torch.bool)
        cell_map.scatter_(1, targets.flatten(1), True)
        cell_map = cell_map.reshape(-1, grid[0] // cell, grid[1] // cell)
        marked |= cell_map.repeat_interleave(cell, dim=1).repeat_interleave(cell, dim=2)
    return marked.flatten(1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("kind", "grid", "cells"), [
    (kind, *case) for kind in KINDS for case in CASES
    if kind != "hierarchical" or (len(case[1]) > 1 and case[0] != (4, 4))  # nothing to nest
    if kind != "inverse_block" or case[0] != (4, 4)  # no block of 2 x 2 cells has the aspect ratio
])  # fmt: skip
def test_context_is_distinct_in_range_and_no_target_under_every_precision(kind, grid, cells, precision) -> None:
    for found, exact in zip(drawn(kind, grid, cells, precision), drawn(kind, grid, cells, "none"), strict=True):
        ordered = found.context.sort(dim=1).values
        assert ordered[:, 0].min() >= 0
        assert ordered[:, -1].max() < grid[0] * grid[1]
        assert (ordered[:, 1:] > ordered[:, :-1]).all()
        assert not hidden_patches(found, grid, cells).gather(1, found.context).any()
        assert torch.equal(found.context, exact.context)
        assert all(torch.equal(a, b) for a, b in zip(found.targets, exact.targets, strict=True))


def test_masks_of_local_crops_are_those_without_autocast_wherever_they_are_made(tiny_module) -> None:
    """Their table is made in the first step that needs it, which is one under autocast."""
    levels, masks = [{"cell": 1}], {"strategy": "cross_crop_prediction"}
    tables = []
    for context in PRECISIONS.values():
        module = tiny_module(levels=levels, masks=masks, predictor=SMALL_PREDICTOR)
        with context:
            made = module.crops.masks_of((32, 32))
            tables.append((made.shapes, made(Counters(0, 0, torch.arange(500))).context))
    for shapes, found in tables[1:]:
        assert shapes == tables[0][0]
        assert torch.equal(found, tables[0][1])
