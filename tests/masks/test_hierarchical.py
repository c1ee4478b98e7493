from itertools import pairwise

import lightning.pytorch as pl
import pytest
import torch

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.functional.choice import scores
from hjepa_pl.functional.counters import Stream, hash_int, uniform
from hjepa_pl.masks import HierarchicalMasks, MaskConfig, build_masks
from hjepa_pl.masks.base import min_visible
from hjepa_pl.types import ConfigError, Counters
from tests.conftest import SMALL_PREDICTOR, TINY, make_batch

CASES = [
    ((8, 8), (1, 2)),
    ((14, 14), (1, 2)),
    ((16, 16), (1, 2, 4)),
    ((8, 12), (1, 2)),
    ((12, 8), (1, 2)),
    ((14, 14), (1, 1, 2)),  # two levels share a cell: the order of the levels says which is the coarser
    ((8, 8), (2, 2)),
    ((12, 12), (1, 2, 3)),  # 2 does not divide 3
]


def hierarchical(grid, cells, seed=0, joint=True, **settings) -> HierarchicalMasks:
    masks = build_masks(MaskConfig(kind="hierarchical", **settings), grid, cells, seed, joint)
    assert isinstance(masks, HierarchicalMasks)
    return masks


def patches_of(cell_index: int, cell: int, grid: tuple[int, int]) -> set[tuple[int, int]]:
    y, x = divmod(cell_index, grid[1] // cell)
    return {(y * cell + i, x * cell + j) for i in range(cell) for j in range(cell)}


def block_of(cell_indices: list[int], cell: int, grid: tuple[int, int]) -> set[tuple[int, int]]:
    """The patches of a level's block, which must be a full rectangle without a cell twice."""
    patches = [p for c in cell_indices for p in patches_of(c, cell, grid)]
    found = set(patches)
    assert len(found) == len(patches)
    rows, columns = {y for y, _ in found}, {x for _, x in found}
    assert found == {(y, x) for y in range(min(rows), max(rows) + 1) for x in range(min(columns), max(columns) + 1)}
    return found


@pytest.mark.parametrize(("grid", "cells"), CASES)
def test_blocks_are_nested_whole_and_hidden_and_wider_the_coarser(grid, cells) -> None:
    """Image by image in plain Python; a pass for each block."""
    masks = hierarchical(grid, cells, seed=3, joint=False)
    for step in range(8):
        found, shape = masks(Counters(1, step, torch.arange(30))), masks.shape_of(step)
        assert found.context.shape == (30, shape.visible)
        sizes = [*shape.inner, (shape.height, shape.width)]
        for cell, targets, (height, width) in zip(cells, found.targets, sizes, strict=True):
            assert targets.shape == (30, shape.blocks, height * width // cell**2)
        for image in range(30):
            seen = set(found.context[image].tolist())
            assert len(seen) == shape.visible
            assert min(seen) >= 0
            assert max(seen) < grid[0] * grid[1]
            for t in range(shape.blocks):
                blocks = [
                    block_of(targets[image, t].tolist(), cell, grid)
                    for cell, targets in zip(cells, found.targets, strict=True)
                ]
                for finer, coarser in pairwise(blocks):
                    assert finer < coarser  # inside, and smaller
                assert not {y * grid[1] + x for y, x in blocks[-1]} & seen


@pytest.mark.parametrize(("grid", "cells"), CASES)
def test_joint_targets_are_distinct_nested_hidden_and_constant_in_number(grid, cells) -> None:
    """Image by image in plain Python."""
    masks = hierarchical(grid, cells, seed=3)
    for step in range(8):
        found, shape = masks(Counters(1, step, torch.arange(30))), masks.shape_of(step)
        assert found.context.shape == (30, shape.visible)
        for cell, side, targets, asked in zip(cells, masks.steps, found.targets, shape.predicted, strict=True):
            assert targets.shape == (30, 1, asked * (side // cell) ** 2)
        for image in range(30):
            seen = set(found.context[image].tolist())
            assert len(seen) == shape.visible
            regions = []
            for cell, targets in zip(cells, found.targets, strict=True):
                asked = targets[image, 0].tolist()
                assert len(set(asked)) == len(asked)
                regions.append(set().union(*(patches_of(c, cell, grid) for c in asked)))
            for finer, coarser in pairwise(regions):
                assert finer < coarser
            assert not {y * grid[1] + x for y, x in regions[-1]} & seen


def test_the_table_does_not_hang_on_the_seed() -> None:
    assert hierarchical((16, 16), (1, 2, 4), seed=0).shapes == hierarchical((16, 16), (1, 2, 4), seed=9).shapes


@pytest.mark.parametrize(("grid", "cells"), CASES)
def test_tables_are_sensible(grid, cells) -> None:
    masks = hierarchical(grid, cells)
    assert 1 <= len(masks.shapes) <= 6
    assert len(set(masks.shapes)) == len(masks.shapes)
    for shape in masks.shapes:
        assert shape.blocks >= 2
        assert shape.visible >= min_visible(grid[0] * grid[1])
        areas = [h * w for h, w in [*shape.inner, (shape.height, shape.width)]]
        for finer, coarser in pairwise(areas):
            assert 0.3 < finer / coarser < 0.83  # nest 0.5, snapped
    lying = sum(s.height < s.width for s in masks.shapes)
    standing = sum(s.height > s.width for s in masks.shapes)
    assert abs(lying - standing) <= 1


def test_masks_equal_a_slow_sampler_of_the_same_draws() -> None:
    """An independent loop over images, blocks and levels, in plain Python, from the same random numbers."""
    grid, cells, seed = (16, 12), (1, 2, 4), 5
    masks = hierarchical(grid, cells, seed, joint=False)
    counters = Counters(2, 4, torch.arange(50, 90))
    found, shape = masks(counters), masks.shape_of(4)
    blocks, sizes = shape.blocks, [*shape.inner, (shape.height, shape.width)]
    places = uniform(hash_int(seed, 2, Stream.BLOCK_PLACE), counters.position, 4 * blocks * 2).tolist()
    nests = uniform(hash_int(seed, 2, Stream.NEST), counters.position, 2 * 2 * blocks).tolist()
    for image in range(40):
        for candidate in range(4):
            draws = places[image][candidate * blocks * 2 : (candidate + 1) * blocks * 2]
            corners = [
                tuple(4 * int(draws[2 * t + axis] * ((grid[axis] - sizes[2][axis]) // 4 + 1)) for axis in (0, 1))
                for t in range(blocks)
            ]
            hidden = {(y + i, x + j) for y, x in corners for i in range(sizes[2][0]) for j in range(sizes[2][1])}
            if 16 * 12 - len(hidden) >= shape.visible:
                break
        for level in (2, 1, 0):
            cell, size = cells[level], sizes[level]
            if level < 2:  # down and to the right inside the block of the next coarser level
                room = [(outer - inner) // cell + 1 for outer, inner in zip(sizes[level + 1], size, strict=True)]
                down, right = (nests[image][(axis * 2 + level) * blocks :][:blocks] for axis in (0, 1))
                corners = [
                    (y + cell * int(down[t] * room[0]), x + cell * int(right[t] * room[1]))
                    for t, (y, x) in enumerate(corners)
                ]
            rows, columns = (range(side // cell) for side in size)
            expected = [
                [(y // cell + i) * (12 // cell) + x // cell + j for i in rows for j in columns] for y, x in corners
            ]
            assert found.targets[level][image].tolist() == expected
        assert not {y * 12 + x for y, x in hidden} & set(found.context[image].tolist())


def test_joint_masks_equal_a_slow_sampler_of_the_same_draws() -> None:
    """The finer levels: cells of their nested blocks, within what the next coarser level is asked for."""
    grid, cells, seed = (16, 12), (1, 2, 4), 5
    masks = hierarchical(grid, cells, seed)
    counters = Counters(2, 4, torch.arange(50, 150))
    found, shape = masks(counters), masks.shape_of(4)
    blocks, sizes = shape.blocks, [*shape.inner, (shape.height, shape.width)]
    places = uniform(hash_int(seed, 2, Stream.BLOCK_PLACE), counters.position, 3 * blocks * 2).tolist()
    nests = uniform(hash_int(seed, 2, Stream.NEST), counters.position, 2 * 2 * blocks).tolist()
    order = scores(hash_int(seed, 2, Stream.KEEP), counters.position, 192).tolist()
    filled, room = 0, (192 - shape.visible) // 16
    for image in range(100):
        candidates = [
            [
                tuple(
                    4 * int(places[image][(c * blocks + t) * 2 + axis] * ((grid[axis] - sizes[2][axis]) // 4 + 1))
                    for axis in (0, 1)
                )
                for t in range(blocks)
            ]
            for c in range(3)
        ]
        counts = [len(cells_of(corners, sizes[2], 4)) for corners in candidates]
        off = [max(0, n - room) + max(0, shape.predicted[2] - n) for n in counts]
        corners = candidates[off.index(min(off))]
        union = cells_of(corners, sizes[2], 4)
        every = sorted(
            ((y, x) for y in range(4) for x in range(3)),
            key=lambda c: (c not in union, order[image][c[0] * 48 + c[1] * 4] >> 8, c),
        )
        asked = set(every[: shape.predicted[2]])
        assert {divmod(c, 3) for c in found.targets[2][image, 0].tolist()} == asked
        for level in (1, 0):
            cell, across = cells[level], 12 // cells[level]
            shift = [
                [int(u * ((o - i) // cell + 1)) for u in nests[image][(axis * 2 + level) * blocks :][:blocks]]
                for axis, (o, i) in enumerate(zip(sizes[level + 1], sizes[level], strict=True))
            ]
            corners = [(y + cell * shift[0][t], x + cell * shift[1][t]) for t, (y, x) in enumerate(corners)]
            within = {(y * 2 + i, x * 2 + j) for y, x in asked for i in (0, 1) for j in (0, 1)}
            wanted = cells_of(corners, sizes[level], cell) & within
            asked = {divmod(c, across) for c in found.targets[level][image, 0].tolist()}
            assert len(asked) == shape.predicted[level]
            assert asked <= within
            # Nothing but cells of the blocks, as long as there are enough of them.
            assert asked <= wanted or wanted <= asked
            filled += not asked <= wanted
    assert filled < 80  # of 200


def cells_of(corners, size, cell) -> set[tuple[int, int]]:
    rows, columns = range(0, size[0], cell), range(0, size[1], cell)
    return {((y + i) // cell, (x + j) // cell) for y, x in corners for i in rows for j in columns}


@pytest.mark.parametrize(("grid", "cells"), CASES)
def test_every_patch_is_seen_and_every_cell_of_every_level_is_predicted(grid, cells) -> None:
    masks = hierarchical(grid, cells)
    seen = torch.zeros(grid[0] * grid[1])
    wanted = [torch.zeros(grid[0] * grid[1] // c**2) for c in cells]
    for step in range(60):
        found = masks(Counters(0, step, torch.arange(128) + 128 * step))
        seen += torch.bincount(found.context.flatten(), minlength=len(seen))
        for count, targets in zip(wanted, found.targets, strict=True):
            count += torch.bincount(targets.flatten(), minlength=len(count))
    assert seen.min() > 60 * 128 / 50  # the centre, which wide blocks cover most
    for count in wanted:
        assert count.min() > 0  # corners inclusive


def test_draws_depend_on_counters_only() -> None:
    masks = hierarchical((14, 14), (1, 2))
    whole = masks(Counters(0, 3, torch.arange(16)))
    torch.manual_seed(99)
    parts = [masks(Counters(0, 3, torch.arange(a, b))) for a, b in ((0, 3), (3, 4), (4, 16))]
    assert torch.equal(whole.context, torch.cat([p.context for p in parts]))
    for level in range(2):
        assert torch.equal(whole.targets[level], torch.cat([p.targets[level] for p in parts]))
    other = masks(Counters(1, 3, torch.arange(16)))
    reseeded = hierarchical((14, 14), (1, 2), seed=1)
    for again in (other, reseeded(Counters(0, 3, torch.arange(16)))):
        assert not all(torch.equal(a, b) for a, b in zip(whole.targets, again.targets, strict=True))
    assert len({masks.shape_of(step) for step in range(40)}) == len(masks.shapes) > 1


def test_keys_do_what_they_say() -> None:
    def area(s, level):
        return s.inner[level][0] * s.inner[level][1] / (s.height * s.width)

    small, large = (hierarchical((16, 16), (1, 2), nest=n).shapes for n in (0.2, 0.7))
    assert all(abs(area(s, 0) - 0.2) < 0.06 for s in small)
    assert all(abs(area(s, 0) - 0.7) < 0.1 for s in large)
    assert {s.blocks for s in hierarchical((14, 14), (1, 2), num_targets=2).shapes} == {2}
    assert {s.visible for s in hierarchical((14, 14), (1, 2), max_visible=0.3).shapes} == {59}
    lying = hierarchical((14, 14), (1, 1), aspect_ratio=(0.4, 0.7)).shapes
    assert all(s.height < s.width for s in lying)
    wide = hierarchical((14, 14), (1, 1), target_scale=(0.3, 0.4)).shapes
    assert all(0.3 <= s.height * s.width / 196 <= 0.4 for s in wide)


@pytest.mark.parametrize(
    ("config", "grid", "cells", "message"),
    [
        ({}, (8, 8), (1,), "`masks.kind=hierarchical`: has no effect with one token level; add another .* multiblock."),
        ({}, (8, 8), (2, 1), r"invalid `levels.cell=\[2, 1\]`: .* the finest level first; use the order \[1, 2\]"),
        ({"nest": 0.01}, (14, 14), (1, 2), r"invalid `masks.nest=0.01`: no smaller block .* 6 x 8 .*; use 0.1, 0.2, "),
        ({"nest": 0.95}, (8, 8), (1, 2, 4), "invalid `masks.nest=0.95`: no smaller block .* 4 x 4 .*; use 0.3, 0.4, "),
        ({"nest": 0.1}, (8, 8), (2, 2), "invalid `masks.nest=0.1`: no smaller block .*; use 0.2, 0.3, 0.4, "),
        ({}, (8, 8), (4, 4), "invalid `masks.nest=0.5`: no smaller .*; set masks.kind to multiblock, or use "),
        ({}, (16, 16), (1, 2, 5), "invalid `levels.cell=5`: must divide the grid of 16 x 16 patches; use 1, 2, 4 or"),
        ({"num_targets": 8}, (14, 14), (1, 2), "invalid `masks.num_targets=8`: leaves fewer than 49 .*; use 5."),
        ({}, (4, 4), (1, 4), "a grid of 4 x 4 patches has no room for a target block and a context; use a smaller"),
    ],
)  # fmt: skip
def test_what_cannot_be_nested_is_refused_in_one_sentence_with_what_would_do(config, grid, cells, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        hierarchical(grid, cells, **config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("asked", [0.01, 0.04, 0.97, 0.999])
@pytest.mark.parametrize(("grid", "cells"), [*CASES, ((4, 4), (1, 1)), ((16, 16), (4, 4))])
def test_the_values_that_a_refusal_names_do(grid, cells, asked) -> None:
    try:
        hierarchical(grid, cells, nest=asked)
    except ConfigError as refusal:
        values = str(refusal).split("; use ")[1].removesuffix(".")
        for value in values.split(", "):
            hierarchical(grid, cells, nest=float(value))


LEVELS = [{"cell": 1}, {"block": 2, "cell": 2}]


@pytest.mark.parametrize("predictor", [{"targets": "joint"}, {"targets": "separate"}, {"attention": "cross"}])
def test_training_runs_and_its_targets_and_loss_are_not_those_of_multiblock(tmp_path, predictor) -> None:
    losses, predicted = {}, {}

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
            losses.setdefault(kind, []).append(float(outputs["loss"]))
            predicted[kind] = [state.cells.shape[1] for state in outputs["levels"].values()]

    for kind in ("hierarchical", "multiblock"):
        torch.manual_seed(0)
        module = HJEPALightningModule(
            encoder=TINY | {"in_chans": 1}, levels=LEVELS, masks={"kind": kind}, predictor=SMALL_PREDICTOR | predictor
        )
        before = [p.detach().clone() for p in module.context_encoder.parameters()]
        data = MultiDatasetDataModule(
            datasets=[{"name": "digits"}], batch_size=16, views=1, epoch_size=32,
            augmentation={"gray": 0.0, "jitter": [0.4, 0.4, 0.0, 0.0], "solarize": 0.0},
        )  # fmt: skip
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, log_every_n_steps=1, callbacks=[Spy()],
        )  # fmt: skip
        trainer.fit(module, data)
        assert trainer.global_step == 2
        assert all(not torch.equal(a, b) for a, b in zip(before, module.context_encoder.parameters(), strict=True))
    assert all(torch.tensor(v).isfinite().all() for v in losses.values())
    assert all(a != b for a, b in zip(losses["hierarchical"], losses["multiblock"], strict=True))
    if predictor.get("targets") == "separate":
        assert predicted["hierarchical"] == [2 * 9, 2 * 4]  # two blocks of 4 x 4 patches, and 3 x 3 in each
        assert predicted["multiblock"] == [2 * 16, 2 * 4]  # the same at both levels
    else:
        assert predicted["hierarchical"] == [17, 8]  # half of the coarse cells, half of their patches, each once
        assert predicted["multiblock"] == [8 * 4, 8]


def test_a_separate_pass_holds_one_coarse_block_and_what_is_nested_in_it(tiny_module) -> None:
    """Group t's predictions do not change with the other groups' cells; in a joint pass they do."""
    drawn = build_masks(MaskConfig(kind="hierarchical"), (8, 8), (1, 2), 0, joint=False)
    for targets, changes in (("separate", False), ("joint", True)):
        module = tiny_module(
            levels=LEVELS, masks={"kind": "hierarchical"}, predictor=SMALL_PREDICTOR | {"targets": targets}
        ).eval()
        batch = make_batch(views=1)
        masks = drawn(batch.counters)
        tokens = module.context_encoder(batch.views[0], masks.context)["last"]
        moved = tuple(torch.cat([t[:, :1], t[:, 1:].flip(0)], dim=1) for t in masks.targets)
        one, two = (module.predictor(tokens, masks.context, t) for t in (masks.targets, moved))
        for level, cells in enumerate(masks.targets):
            first = cells.shape[2]
            same = torch.allclose(one[level][:, :first], two[level][:, :first], atol=1e-6)
            assert same is not changes


def test_a_single_token_level_is_refused_by_the_module(tiny_module) -> None:
    with pytest.raises(ConfigError, match=r"invalid `masks.kind=hierarchical`: has no effect with one token level"):
        tiny_module(levels=[{"cell": 1}, {"cell": "image"}], masks={"kind": "hierarchical"})
