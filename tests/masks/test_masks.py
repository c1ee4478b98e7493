import hashlib
import re

import pytest
import torch

from hjepa_pl.functional.choice import scores
from hjepa_pl.functional.counters import Stream, hash_int, uniform
from hjepa_pl.masks import MaskConfig, MaskShape, build_masks
from hjepa_pl.masks.base import min_visible
from hjepa_pl.types import ConfigError, Counters
from hjepa_pl.utils.settings import to_plain

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


@pytest.mark.parametrize("kind", ["multiblock", "separate multiblock", "random"])
@pytest.mark.parametrize(("grid", "cells"), CASES)
def test_every_cell_is_hidden_whole_inside_and_constant_in_number(kind, grid, cells) -> None:
    config = MaskConfig(kind=kind, ratio=0.5) if kind == "random" else MaskConfig()
    masks = build_masks(config, grid, cells, seed=3, joint=kind != "separate multiblock")
    for step in range(12):
        found = masks(Counters(1, step, torch.arange(40)))
        shape = masks.shape_of(step)
        assert found.context.shape == (40, shape.visible)
        for image in range(40):
            seen = set(found.context[image].tolist())
            assert len(seen) == shape.visible
            assert max(seen) < grid[0] * grid[1]
            regions = []
            for cell, targets in zip(cells, found.targets, strict=True):
                asked = targets[image].flatten().tolist()
                regions.append({p for c in asked for p in patches_of(c, cell, grid)})
                assert not regions[-1] & seen  # hidden, and whole: no patch of any target cell is visible
                if kind != "separate multiblock":
                    assert len(set(asked)) == len(asked)  # no query repeats another
            assert all(region == regions[0] for region in regions)  # every level predicts the same
        areas = {t.shape[1:].numel() * c * c for t, c in zip(found.targets, cells, strict=True)}
        assert len(areas) == 1  # every level covers the same blocks


def patches_of(cell_index: int, cell: int, grid: tuple[int, int]) -> list[int]:
    y, x = divmod(cell_index, grid[1] // cell)
    return [(y * cell + i) * grid[1] + x * cell + j for i in range(cell) for j in range(cell)]


def drawn_blocks(seed, counters, candidates, shape, grid, cell) -> list[list[list[tuple[int, int]]]]:
    """Corners of each image's candidates, from the same random numbers."""
    u = uniform(hash_int(seed, 2, Stream.BLOCK_PLACE), counters.position, candidates * shape.blocks * 2)
    places = [(side - size) // cell + 1 for side, size in zip(grid, shape[:2], strict=True)]
    return [
        [
            [
                tuple(cell * int(draws[(c * shape.blocks + t) * 2 + axis] * places[axis]) for axis in (0, 1))
                for t in range(shape.blocks)
            ]
            for c in range(candidates)
        ]
        for draws in u.tolist()
    ]


def cells_in(corners, shape, cell) -> set[tuple[int, int]]:
    rows, columns = range(0, shape.height, cell), range(0, shape.width, cell)
    return {((y + i) // cell, (x + j) // cell) for y, x in corners for i in rows for j in columns}


@pytest.mark.parametrize("config", [{}, {"num_targets": 1, "max_visible": 0.6}, {"num_targets": 7}])
def test_joint_masks_equal_a_slow_sampler_of_the_same_draws(config) -> None:
    """An independent loop over images, in plain Python: unions of blocks, thinned to a fixed number of cells."""
    grid, cell = (8, 12), 2
    masks = build_masks(MaskConfig(**config), grid, (1, 2), seed=5)
    counters = Counters(2, 4, torch.arange(50, 250))
    found, shape = masks(counters), masks.shape_of(4)
    drawn = drawn_blocks(5, counters, 3, shape, grid, cell)
    order = scores(hash_int(5, 2, Stream.KEEP), counters.position, 96).tolist()
    room, kept = (96 - shape.visible) // 4, []
    for image in range(200):
        unions = [cells_in(corners, shape, cell) for corners in drawn[image]]
        off = [max(0, len(u) - room) + max(0, shape.predicted[0] - len(u)) for u in unions]
        union = unions[off.index(min(off))]
        every = [(y, x) for y in range(4) for x in range(6)]
        # A cell's rank is that of its upper left patch, of whose score 7 bits are the place.
        every.sort(key=lambda c: (c not in union, order[image][c[0] * 24 + c[1] * 2] >> 7, c))
        asked = set(every[: shape.predicted[0]])
        kept.append(asked <= union)
        hidden = asked | (union if len(union) <= room else set())  # too wide: all may be seen that is not asked for
        patches = sorted(range(96), key=lambda p: ((p // 24, p % 12 // 2) in hidden, order[image][p]))
        assert set(found.context[image].tolist()) == set(patches[: shape.visible])
        assert {divmod(c, 6) for c in found.targets[1][image, 0].tolist()} == asked
        fine = {(y * 2 + i) * 12 + x * 2 + j for y, x in asked for i in (0, 1) for j in (0, 1)}
        assert set(found.targets[0][image, 0].tolist()) == fine
    assert sum(kept) > 180  # nearly always nothing is asked for but cells of the blocks


def test_separate_masks_equal_a_slow_sampler_of_the_same_draws() -> None:
    """An independent loop over images, in plain Python, from the same random corners."""
    masks = build_masks(MaskConfig(), (8, 8), (1, 2), seed=5, joint=False)
    counters = Counters(2, 4, torch.arange(50, 80))
    found, shape = masks(counters), masks.shape_of(4)
    assert found.targets[0].shape[1] == shape.blocks > 1
    for image, candidates in enumerate(drawn_blocks(5, counters, 4, shape, (8, 8), 2)):
        for corners in candidates:
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


@pytest.mark.parametrize("kind", ["multiblock", "hierarchical"])
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize(("grid", "cells"), [
    ((6, 6), (1,)), ((6, 6), (1, 2)), ((7, 7), (1,)), ((8, 8), (1,)), ((8, 8), (1, 2)), ((8, 14), (1, 2)),
    ((12, 12), (1, 2)), ((14, 14), (1,)), ((14, 14), (1, 2)), ((16, 16), (1, 2)), ((16, 16), (1, 2, 4)),
    ((28, 28), (1, 2)), ((32, 32), (1, 2, 4)),
])  # fmt: skip
def test_30_to_40_percent_is_visible_and_about_half_is_asked_for(grid, cells, joint, kind) -> None:
    if kind == "hierarchical" and len(cells) == 1:
        cells = (1, 1)
    masks = build_masks(MaskConfig(kind=kind), grid, cells, seed=0, joint=joint)
    patches = grid[0] * grid[1]
    for shape in masks.shapes:
        assert shape.blocks > 1
        assert 0.3 <= shape.visible / patches <= 0.4
        assert shape.visible >= min_visible(patches)
        if joint:
            asked = shape.predicted[-1] * masks.cell**2 / patches
            assert 0.4 <= asked <= 0.6
            assert asked * patches + shape.visible <= patches


def test_the_cells_that_are_asked_for_are_those_of_blocks() -> None:
    """Not of single cells, which their neighbours give away."""
    for grid, cells in (((8, 8), (1, 2)), ((14, 14), (1,)), ((14, 14), (1, 2))):
        masks = build_masks(MaskConfig(), grid, cells, seed=0)
        wide = grid[1] // masks.cell
        lone = total = 0
        for step in range(12):
            found = masks(Counters(0, step, torch.arange(100)))
            for asked in found.targets[-1][:, 0].tolist():
                places = {divmod(c, wide) for c in asked}
                beside = [{(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} & places for y, x in places]
                lone += sum(not b for b in beside)
                total += len(places)
        assert lone < 0.02 * total


def test_every_patch_is_seen_and_every_patch_is_a_target() -> None:
    """I-JEPA's corner rule leaves 15 of 64 patches on this grid out of both; ours none."""
    masks = build_masks(MaskConfig(), (8, 8), (1,), seed=0)
    seen, wanted = torch.zeros(64), torch.zeros(64)
    for step in range(40):
        found = masks(Counters(0, step, torch.arange(64) + 64 * step))
        seen += torch.bincount(found.context.flatten(), minlength=64)
        wanted += torch.bincount(found.targets[0].flatten(), minlength=64)
    assert seen.min() > 40 * 64 / 20  # the middle, which blocks cover most
    assert wanted.min() > 40 * 64 / 20  # corners inclusive


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


OLD = {"num_targets": 4, "max_visible": 1.0}
"""What null was before version 0.2: all that the blocks leave was visible."""


@pytest.mark.parametrize(
    ("config", "grid", "cells", "checksum"),
    [
        (OLD, (14, 14), (1, 2), "d9ef6e1fd815aa87"),
        (OLD | {"num_targets": 3, "target_scale": (0.15, 0.2)}, (8, 8), (1, 2), "4fcc7927ff447e04"),
        (
            {"num_targets": 2, "target_scale": (0.1, 0.3), "aspect_ratio": (0.5, 2.0), "max_visible": 1.0},
            (16, 16), (1, 2, 4), "11b0db6281280a7e",
        ),
        (OLD | {"max_visible": 0.3}, (14, 14), (1,), "78af95b1ac591030"),
        (OLD | {"num_targets": 3}, (8, 12), (2,), "887aa0fbe4b4f32c"),
        ({"kind": "random"}, (14, 14), (1, 2), "d65be5f613c17bf8"),
        ({"kind": "random", "ratio": 0.5}, (8, 12), (2,), "a3a251bbcd151a64"),
    ],
)  # fmt: skip
def test_separate_and_random_masks_are_those_of_version_0_1_0(config, grid, cells, checksum) -> None:
    """Golden: blocks from before their machinery was shared. A changed draw changes every old run."""
    masks = build_masks(MaskConfig(**config), grid, cells, seed=7, joint=False)
    assert digest_of(masks, ordered=True) == checksum


@pytest.mark.parametrize(
    ("config", "grid", "cells", "checksum"),
    [
        ({}, (14, 14), (1, 2), "c6b7a5ac4135cbed"),
        ({}, (8, 8), (1, 2), "d02d762df2acb100"),
        ({"max_visible": 0.3}, (14, 14), (1,), "c2fc7ec2bcefb468"),
        ({"kind": "hierarchical"}, (14, 14), (1, 2), "9216f81c254f11fc"),
    ],
)
def test_joint_masks_do_not_change(config, grid, cells, checksum) -> None:
    """Golden."""
    assert digest_of(build_masks(MaskConfig(**config), grid, cells, seed=7), ordered=False) == checksum


def digest_of(masks, ordered) -> str:
    digest = hashlib.sha256()
    for step in range(12):
        found = masks(Counters(step // 3, step, torch.arange(64 * step, 64 * step + 64)))
        targets = found.targets if ordered else [t.sort(dim=-1).values for t in found.targets]
        for tensor in (found.context.sort(dim=1).values, *targets):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize(("visible", "some", "all_of_them"), [(74, False, False), (98, True, False), (160, True, True)])
def test_images_where_no_placement_fits_get_all_blocks_at_one_place(visible, some, all_of_them) -> None:
    """Rare (one image in 10^5), so it is forced by asking for more visible patches than most placements leave."""
    masks = build_masks(MaskConfig(), (14, 14), (1, 2), seed=3, joint=False)
    masks.shapes = (MaskShape(6, 6, 4, visible),)
    found = masks(Counters(0, 0, torch.arange(300)))
    assert found.context.shape == (300, visible)
    together = (found.targets[0] == found.targets[0][:, :1]).flatten(1).all(dim=1)
    assert (bool(together.any()), bool(together.all())) == (some, all_of_them)
    for image in range(300):
        assert not set(found.context[image].tolist()) & set(found.targets[0][image].flatten().tolist())


NO_EFFECT = "has no effect with masks.kind="


@pytest.mark.parametrize(
    ("config", "grid", "cells", "message"),
    [
        ({}, (2, 2), (1,), r"invalid `masks.target_scale=\[0.2, 0.25\]`: leaves fewer than 4 .* smaller encoder.patch"),
        ({}, (14, 14), (1, 4), "invalid `levels.cell=4`: must divide the grid of 14 x 14 patches; use 1, 2 or 7."),
        ({"kind": "random"}, (12, 14), (1, 5), "`levels.cell=5`: must divide the grid of 12 x 14 patches; use 1 or 2."),
        # 6 divides the grid too, but with the other level's 4 only the whole grid is whole in both.
        ({}, (12, 12), (4, 5), "invalid `levels.cell=5`: must divide the grid of 12 x 12 patches; use 1, 2 or 4."),
        (
            {"num_targets": 9},
            (8, 8),
            (1, 2),
            "invalid `masks.num_targets=9`: leaves fewer than 24 .*; use [1-8]",
        ),
        (
            {"num_targets": 8, "max_visible": 0.9},
            (14, 14),
            (1,),
            "invalid `masks.max_visible=0.9`: has no effect, as the blocks leave at most 0.3. visible; lower or remove",
        ),
        ({"max_visible": 0.05}, (8, 8), (1,), "`masks.max_visible=0.05`: leaves 3 of 64 patches; use 0.38 or more."),
        (
            {"kind": "random", "ratio": 0.99},
            (8, 8),
            (1,),
            "invalid `masks.ratio=0.99`: hides 63 of the grid's 64 cells; use a ratio from 0.02 to 0.62.",
        ),
        ({"ratio": 0.5}, (8, 8), (1,), f"invalid `masks.ratio=0.5`: {NO_EFFECT}multiblock; remove it."),
        ({"kind": "random", "num_targets": 3}, (8, 8), (1,), f"invalid `masks.num_targets=3`: {NO_EFFECT}random"),
        ({"nest": 0.4}, (8, 8), (1,), f"invalid `masks.nest=0.4`: {NO_EFFECT}multiblock; remove it."),
        ({"kind": "random", "nest": 0.4}, (8, 8), (1,), f"invalid `masks.nest=0.4`: {NO_EFFECT}random; remove it."),
        ({"kind": "hierarchical", "ratio": 0.5}, (8, 8), (1, 2), f"`masks.ratio=0.5`: {NO_EFFECT}hierarchical"),
        ({"options": {"a": 1}}, (8, 8), (1,), f"invalid `masks.options={{a: 1}}`: {NO_EFFECT}multiblock"),
        (
            {"kind": "stripes"},
            (8, 8),
            (1,),
            "invalid `masks.kind=stripes`: must be multiblock, hierarchical, random or inverse_block",
        ),
        (
            {"kind": "os.path.join"},
            (8, 8),
            (1,),
            "`masks.kind=os.path.join`: must be a subclass of hjepa_pl.masks",
        ),
    ],
)
def test_impossible_masks_are_rejected_with_a_fix(config, grid, cells, message) -> None:
    with pytest.raises(ConfigError, match=message):
        build_masks(MaskConfig(**config), grid, cells, seed=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"target_scale": (0.3, 0.1)},
            "invalid `masks.target_scale=[0.3, 0.1]`: must be [low, high] with low <= ",
        ),
        (
            {"target_scale": (0.3, 1.1)},
            "invalid `masks.target_scale=[0.3, 1.1]`: must be a list of 2 numbers ",
        ),
        ({"aspect_ratio": (-1.0, 1.0)}, "invalid `masks.aspect_ratio=[-1, 1]`: must be a list of 2 numbers > 0"),
        ({"num_targets": 0}, "invalid `masks.num_targets=0`: must be a whole number >= 1 or auto."),
        ({"kind": "random", "ratio": 1.5}, "invalid `masks.ratio=1.5`: must be a number in (0, 1)."),
        ({"max_visible": 0.0}, "invalid `masks.max_visible=0`: must be a number in (0, 1] or null."),
        (
            {"kind": "hierarchical", "nest": 1.0},
            "invalid `masks.nest=1`: must be a number in (0, 1); for blocks of one size at all levels set masks",
        ),
        ({"kind": "hierarchical", "nest": 0.0}, "invalid `masks.nest=0`: must be a number in (0, 1)"),
    ],
)
def test_bad_mask_settings_are_rejected(config, message) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        MaskConfig(**config)


def test_defaults_may_be_written_out_for_any_kind() -> None:
    """As in a config that `--print_config` wrote."""
    written = to_plain(MaskConfig(kind="random", ratio=0.5))
    assert written["nest"] == 0.5
    assert build_masks(MaskConfig(**written), (8, 8), (1,), seed=0).shapes[0].visible == 32
