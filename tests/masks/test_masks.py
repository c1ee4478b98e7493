import hashlib

import pytest
import torch

from hjepa_pl.masks import MaskConfig, MaskShape, build_masks
from hjepa_pl.types import ConfigError, Counters

CASES = [
    ((14, 14), (1, 2)),
    ((14, 14), (1,)),
    ((8, 8), (1, 2)),
    ((16, 16), (1, 2, 4)),
    ((4, 4), (1, 2)),
    ((12, 8), (2,)),
    ((8, 14), (1, 2)),
    ((12, 18), (2, 3)),  # neither cell holds the other: blocks are whole in both
]


@pytest.mark.parametrize("kind", ["multiblock", "random"])
@pytest.mark.parametrize(("grid", "cells"), CASES)
def test_every_cell_is_hidden_whole_inside_and_constant_in_number(kind, grid, cells) -> None:
    config = MaskConfig(kind=kind, ratio=0.5) if kind == "random" else MaskConfig()
    masks = build_masks(config, grid, cells, seed=3)
    for step in range(12):
        found = masks(Counters(1, step, torch.arange(40)))
        shape = masks.shape_of(step)
        assert found.context.shape == (40, shape.visible)
        for image in range(40):
            seen = set(found.context[image].tolist())
            assert len(seen) == shape.visible
            assert max(seen) < grid[0] * grid[1]
            for cell, targets in zip(cells, found.targets, strict=True):
                patches = {p for c in targets[image].flatten().tolist() for p in patches_of(c, cell, grid)}
                assert not patches & seen  # hidden, and whole: no patch of any target cell is visible
        areas = {t.shape[1:].numel() * c * c for t, c in zip(found.targets, cells, strict=True)}
        assert len(areas) == 1  # every level covers the same blocks


def patches_of(cell_index: int, cell: int, grid: tuple[int, int]) -> list[int]:
    y, x = divmod(cell_index, grid[1] // cell)
    return [(y * cell + i) * grid[1] + x * cell + j for i in range(cell) for j in range(cell)]


def test_masks_equal_a_slow_sampler_of_the_same_draws() -> None:
    """An independent loop over images, in plain Python, from the same random corners."""
    masks = build_masks(MaskConfig(), (8, 8), (1, 2), seed=5)
    counters = Counters(2, 4, torch.arange(50, 80))
    found, shape = masks(counters), masks.shape_of(4)
    from hjepa_pl.functional.counters import Stream, hash_int, uniform

    u = uniform(hash_int(5, 2, Stream.BLOCK_PLACE), counters.position, 4 * shape.blocks * 2).tolist()
    for image, row in enumerate(u):
        for candidate in range(4):
            draws = row[candidate * shape.blocks * 2 : (candidate + 1) * shape.blocks * 2]
            corners = [
                (
                    int(draws[2 * t] * ((8 - shape.height) // 2 + 1)) * 2,
                    int(draws[2 * t + 1] * ((8 - shape.width) // 2 + 1)) * 2,
                )
                for t in range(shape.blocks)
            ]
            hidden = {(y + i) * 8 + x + j for y, x in corners for i in range(shape.height) for j in range(shape.width)}
            if 64 - len(hidden) >= shape.visible:
                break
        fine = [(y + i) * 8 + x + j for y, x in corners for i in range(shape.height) for j in range(shape.width)]
        coarse = [
            (y + i) // 2 * 4 + (x + j) // 2
            for y, x in corners
            for i in range(0, shape.height, 2)
            for j in range(0, shape.width, 2)
        ]
        assert found.targets[0][image].flatten().tolist() == fine
        assert found.targets[1][image].flatten().tolist() == coarse
        assert not hidden & set(found.context[image].tolist())


def test_every_patch_is_seen_and_every_patch_is_a_target() -> None:
    """I-JEPA's corner rule leaves 15 of 64 patches on this grid out of both; ours none."""
    masks = build_masks(MaskConfig(), (8, 8), (1,), seed=0)
    seen, wanted = torch.zeros(64), torch.zeros(64)
    for step in range(40):
        found = masks(Counters(0, step, torch.arange(64) + 64 * step))
        seen += torch.bincount(found.context.flatten(), minlength=64)
        wanted += torch.bincount(found.targets[0].flatten(), minlength=64)
    assert seen.min() > 0.5 * seen.mean()
    assert wanted.min() > 0


def test_draws_depend_on_counters_only() -> None:
    masks = build_masks(MaskConfig(), (8, 8), (1, 2), seed=0)
    whole = masks(Counters(0, 3, torch.arange(16)))
    torch.manual_seed(99)
    half = masks(Counters(0, 3, torch.arange(8, 16)))
    assert torch.equal(whole.context[8:], half.context)
    assert torch.equal(whole.targets[1][8:], half.targets[1])
    assert not torch.equal(whole.context, masks(Counters(1, 3, torch.arange(16))).context)
    assert not torch.equal(
        whole.context, build_masks(MaskConfig(), (8, 8), (1, 2), seed=1)(Counters(0, 3, torch.arange(16))).context
    )


def test_block_shapes_vary_over_steps_within_the_ranges() -> None:
    masks = build_masks(MaskConfig(), (14, 14), (1,), seed=0)
    shapes = {masks.shape_of(step)[:2] for step in range(60)}
    assert len(shapes) == len(masks.shapes) > 2
    for height, width in shapes:
        assert 0.15 <= height * width / 196 <= 0.2
        assert 0.75 <= height / width <= 1.5


def test_max_visible_caps_the_context() -> None:
    masks = build_masks(MaskConfig(max_visible=0.3), (14, 14), (1,), seed=0)
    assert {s.visible for s in masks.shapes} == {59}
    assert masks(Counters(0, 0, torch.arange(4))).context.shape == (4, 59)


@pytest.mark.parametrize(
    ("config", "grid", "cells", "checksum"),
    [
        ({}, (14, 14), (1, 2), "d9ef6e1fd815aa87"),
        ({}, (8, 8), (1, 2), "4fcc7927ff447e04"),
        (
            {"num_targets": 2, "target_scale": (0.1, 0.3), "aspect_ratio": (0.5, 2.0)},
            (16, 16), (1, 2, 4), "11b0db6281280a7e",
        ),
        ({"max_visible": 0.3}, (14, 14), (1,), "78af95b1ac591030"),
        ({}, (8, 12), (2,), "887aa0fbe4b4f32c"),
        ({"kind": "random"}, (14, 14), (1, 2), "d65be5f613c17bf8"),
        ({"kind": "random", "ratio": 0.5}, (8, 12), (2,), "a3a251bbcd151a64"),
    ],
)  # fmt: skip
def test_masks_are_those_of_version_0_1_0(config, grid, cells, checksum) -> None:
    """Golden: blocks from before their machinery was shared. A changed draw changes every old run."""
    masks = build_masks(MaskConfig(**config), grid, cells, seed=7)
    digest = hashlib.sha256()
    for step in range(12):
        found = masks(Counters(step // 3, step, torch.arange(64 * step, 64 * step + 64)))
        for tensor in (found.context.sort(dim=1).values, *found.targets):
            digest.update(tensor.contiguous().numpy().tobytes())
    assert digest.hexdigest()[:16] == checksum


@pytest.mark.parametrize(("visible", "some", "all_of_them"), [(74, False, False), (98, True, False), (160, True, True)])
def test_images_where_no_placement_fits_get_all_blocks_at_one_place(visible, some, all_of_them) -> None:
    """Rare (one image in 10^5), so it is forced by asking for more visible patches than most placements leave."""
    masks = build_masks(MaskConfig(), (14, 14), (1, 2), seed=3)
    masks.shapes = (MaskShape(6, 6, 4, visible),)
    found = masks(Counters(0, 0, torch.arange(300)))
    assert found.context.shape == (300, visible)
    together = (found.targets[0] == found.targets[0][:, :1]).flatten(1).all(dim=1)
    assert (bool(together.any()), bool(together.all())) == (some, all_of_them)
    for image in range(300):
        assert not set(found.context[image].tolist()) & set(found.targets[0][image].flatten().tolist())


@pytest.mark.parametrize(
    ("config", "grid", "cells", "message"),
    [
        ({}, (2, 2), (1,), "masks.target_scale .* smaller encoder.patch_size"),
        ({}, (14, 14), (1, 4), "levels.cell 4 does not divide the grid of 14 x 14 patches; 1, 2, 7 would do"),
        ({"kind": "random"}, (12, 14), (1, 5), "levels.cell 5 does not divide the grid of 12 x 14 patches; 1, 2 would"),
        # 6 divides the grid too, but with the other level's 4 only the whole grid is whole in both.
        ({}, (12, 12), (4, 5), "levels.cell 5 does not divide the grid of 12 x 12 patches; 1, 2, 4 would do"),
        ({"num_targets": 9}, (8, 8), (1, 2), "masks.num_targets 9 leaves fewer than 24 .*would do"),
        ({"max_visible": 0.05}, (8, 8), (1,), "masks.max_visible 0.05 leaves 3 of 64 patches; 0.38 would do"),
        ({"kind": "random", "ratio": 0.99}, (8, 8), (1,), "masks.ratio 0.99 .* between 0.02 and 0.62 would do"),
    ],
)
def test_impossible_masks_are_refused_with_what_would_do(config, grid, cells, message) -> None:
    with pytest.raises(ConfigError, match=message):
        build_masks(MaskConfig(**config), grid, cells, seed=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target_scale": (0.3, 0.1)}, "masks.target_scale must be"),
        ({"aspect_ratio": (-1.0, 1.0)}, "masks.aspect_ratio must be"),
        ({"num_targets": 0}, "masks.num_targets must be at least 1, got 0"),
        ({"ratio": 0.5}, "masks.ratio 0.5 does nothing with masks.kind 'multiblock'"),
        ({"kind": "random", "num_targets": 3}, "masks.num_targets 3 does nothing with masks.kind 'random'"),
        ({"kind": "random", "ratio": 1.5}, "masks.ratio must lie in"),
        ({"nest": 0.5}, "masks.nest 0.5 does nothing with masks.kind 'multiblock'; remove it"),
        ({"kind": "random", "nest": 0.5}, "masks.nest 0.5 does nothing with masks.kind 'random'; remove it"),
        ({"kind": "hierarchical", "ratio": 0.5}, "masks.ratio 0.5 does nothing with masks.kind 'hierarchical'"),
        (
            {"kind": "hierarchical", "nest": 1.0},
            "masks.nest must lie in .0, 1., got 1.0; .*use masks.kind 'multiblock'",
        ),
        ({"kind": "hierarchical", "nest": 0.0}, "masks.nest must lie in .0, 1., got 0.0"),
    ],
)
def test_bad_mask_settings_are_refused(config, message) -> None:
    with pytest.raises(ConfigError, match=message):
        MaskConfig(**config)
