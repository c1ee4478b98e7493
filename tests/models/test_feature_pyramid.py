import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from hjepa_pl.functional.tokens import cell_patches
from hjepa_pl.models.config import EncoderConfig, PredictorConfig, PyramidConfig
from hjepa_pl.models.encoder import VisionEncoder
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.models.predictor import Predictor
from hjepa_pl.models.pyramid import FeaturePyramid, PyramidHeads, finest_level, pyramid_blocks

DIM = 12


def make(cell: int = 1, **settings) -> FeaturePyramid:
    pyramid = FeaturePyramid(PyramidConfig(**settings), DIM, cell)
    with torch.no_grad():
        for parameter in pyramid.parameters():  # away from the initial zeros, so that every one shows
            parameter.add_(0.1 * torch.randn_like(parameter))
    return pyramid


def tokens(count: int, batch: int = 2) -> list[torch.Tensor]:
    return [torch.randn(batch, count, DIM) for _ in range(3)]


@pytest.mark.parametrize("fusion", ["add", "concat"])
@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (7, 7), (5, 9), (2, 1)], ids=str)
def test_maps_have_the_ceil_of_the_grid_at_strides_1_2_4(grid, fusion) -> None:
    maps = make(fusion=fusion, dim=6)(tokens(grid[0] * grid[1]), grid)
    assert [tuple(m.shape) for m in maps] == [(2, 6, math.ceil(grid[0] / s), math.ceil(grid[1] / s)) for s in (1, 2, 4)]


@pytest.mark.parametrize("fusion", ["add", "concat"])
def test_an_odd_grid_equals_a_slow_plain_python_pyramid(fusion) -> None:
    height, width = 5, 7
    pyramid, inputs = make(fusion=fusion), tokens(height * width, batch=1)
    merged = {}
    for number, stride in reversed([*enumerate((1, 2, 4))]):
        projected = pyramid.laterals[number](inputs[number])[0]
        rows, columns = math.ceil(height / stride), math.ceil(width / stride)
        out = torch.zeros(1, DIM, rows, columns)
        for y, x in itertools.product(range(rows), range(columns)):
            window = itertools.product(range(y * stride, (y + 1) * stride), range(x * stride, (x + 1) * stride))
            real = [projected[i * width + j] for i, j in window if i < height and j < width]
            cell = sum(real) / len(real)
            if number < 2:
                above = merged[number + 1][0, :, y // 2, x // 2]
                if fusion == "add":
                    cell = cell + above
                else:
                    mix = pyramid.merges[number]
                    cell = mix.weight[:, :, 0, 0] @ torch.cat([cell, above]) + mix.bias
            out[0, :, y, x] = cell
        merged[number] = out
    for number, found in enumerate(pyramid(inputs, (height, width))):
        torch.testing.assert_close(found, pyramid.smooths[number](merged[number]), atol=1e-5, rtol=1e-5)


def test_coarse_maps_see_wider() -> None:
    """One patch changed at all depths: the further up, the larger the part of the image that hears of it."""
    pyramid, inputs = make(), tokens(256, batch=1)
    changed = [x.clone() for x in inputs]
    for x in changed:
        x[:, 8 * 16 + 8] += 1.0
    seen = []
    for stride, before, after in zip((1, 2, 4), pyramid(inputs, (16, 16)), pyramid(changed, (16, 16)), strict=True):
        rows = (before != after).any(dim=1)[0].any(dim=1).sum()
        seen.append(int(rows) * stride)
    # The patch's 4 x 4 cell comes down to the finer maps, and each is smoothed by one cell of its own on either side.
    assert seen == [6, 8, 12]


def test_concat_has_one_mixing_layer_for_each_of_two_fusions_and_computes_something_else() -> None:
    add, concat = make(fusion="add", dim=8), make(fusion="concat", dim=8)
    count = [sum(p.numel() for p in m.parameters()) for m in (add, concat)]
    assert count[1] - count[0] == 2 * (16 * 8 + 8)
    shared = concat.load_state_dict(add.state_dict(), strict=False)
    assert all(name.startswith("merges") for name in shared.missing_keys)
    inputs = tokens(64)
    fine_add, _, coarse_add = add(inputs, (8, 8))
    fine_concat, _, coarse_concat = concat(inputs, (8, 8))
    assert torch.equal(coarse_add, coarse_concat)  # nothing is fused into the coarsest
    assert not torch.allclose(fine_add, fine_concat, atol=1e-2)
    with torch.no_grad():  # a mix that adds is the sum
        for mix in concat.merges:
            mix.weight.copy_(torch.cat([torch.eye(8), torch.eye(8)], dim=1)[..., None, None])
            mix.bias.zero_()
    for a, b in zip(add(inputs, (8, 8)), concat(inputs, (8, 8)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_every_depth_reaches_its_own_map() -> None:
    pyramid, inputs = make(), tokens(64)
    before = pyramid(inputs, (8, 8))
    for depth in range(3):
        other = list(inputs)
        other[depth] = other[depth] + 1.0
        changed = [not torch.equal(a, b) for a, b in zip(before, pyramid(other, (8, 8)), strict=True)]
        assert changed == [number <= depth for number in range(3)]  # deep ones come down, none goes up


def test_scattered_tokens_lie_at_their_places() -> None:
    pyramid, inputs = make(), tokens(35)
    order = torch.stack([torch.randperm(35), torch.randperm(35)])
    shuffled = [torch.stack([x[b, order[b]] for b in range(2)]) for x in inputs]
    none = torch.zeros(2, 0, DIM), torch.zeros(2, 0, dtype=torch.int64)
    for a, b in zip(pyramid(inputs, (5, 7)), pyramid(shuffled, (5, 7), order, *none), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_holes_hold_the_mean_prediction_and_the_rest_the_absent_vector() -> None:
    """The fine map without its smoothing, where all of it can be written down."""
    pyramid = make()
    pyramid.smooths[0] = torch.nn.Identity()
    inputs, predictions = tokens(2, batch=1), torch.randn(1, 3, DIM)
    index, cells = torch.tensor([[0, 1]]), torch.tensor([[2, 2, 4]])  # patch 2 is in two blocks; 3 and 5 nowhere
    with torch.no_grad():  # the coarser maps hear of the fill and the absent vector only
        for lateral in pyramid.laterals[1:]:
            lateral.weight.zero_()
            lateral.bias.zero_()
        fine = pyramid(inputs, (2, 3), index, predictions, cells)[0].flatten(2)[0].T
        coarse = pyramid([torch.zeros(1, 2, DIM)] * 3, (2, 3), index, predictions, cells)[0].flatten(2)[0].T
        bias = pyramid.laterals[0].bias
        shift = coarse[0] - bias  # what they add to the patches 0, 1, 3 and 4, which are one cell of 2 x 2
        fill = pyramid.fill(predictions)[0]
        seen = pyramid.laterals[0](inputs[0])[0]
        row = torch.stack([seen[0], seen[1], fill[:2].mean(0)])
        torch.testing.assert_close(fine[:2] - shift, row[:2], atol=1e-5, rtol=1e-5)
    # Patches 2 and 5 share the other cell, so that what it adds to them is the same.
    torch.testing.assert_close(fine[2] - fine[5], row[2] - pyramid.absent, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fine[4] - fine[3], fill[2] - pyramid.absent, atol=1e-5, rtol=1e-5)


def test_predictions_of_larger_cells_are_repeated_over_their_patches() -> None:
    coarse, fine = make(cell=2), make(cell=1)
    fine.load_state_dict(coarse.state_dict())
    index = torch.tensor([[0, 1, 2, 3, 6, 7, 8, 9]])
    inputs, predictions, cells = tokens(8, batch=1), torch.randn(1, 2, DIM), torch.tensor([[3, 5]])
    patches = torch.tensor([[12, 13, 18, 19, 16, 17, 22, 23]])  # of a 4 x 6 grid, 2 x 3 cells
    assert torch.equal(cell_patches(cells, (4, 6), 2), patches)
    repeated = fine(inputs, (4, 6), index, predictions.repeat_interleave(4, dim=1), patches)
    for a, b in zip(coarse(inputs, (4, 6), index, predictions, cells), repeated, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_no_image_depends_on_the_others_of_its_batch() -> None:
    pyramid, inputs = make(), tokens(16, batch=3)
    for together, alone in zip(pyramid(inputs, (4, 4)), pyramid([x[1:2] for x in inputs], (4, 4)), strict=True):
        torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("depth", "blocks"), [(3, (1, 2, "last")), (5, (2, 3, "last")), (12, (4, 8, "last"))])
def test_depths_are_thirds(depth, blocks) -> None:
    assert pyramid_blocks(depth) == blocks


@pytest.mark.parametrize(
    ("levels", "reads", "fill"),
    [
        ([(1, "last"), (2, "last"), (4, "last")], [(0, 0), (1, 1), (2, 2)], 0),
        ([(2, "last"), (1, 3), (1, "last")], [(0, 1), (1, 0), (2, 0), (0, 2)], 2),
        ([(1, 5), (1, 3), (4, "last")], [(0, 0), (1, 0), (2, 2), (0, 1)], 0),
        ([(4, "last"), (2, 1)], [(0, 2), (1, 1), (1, 0)], 1),
    ],
)
def test_a_level_reads_its_own_map_and_a_map_without_one_the_nearest_level(levels, reads, fill) -> None:
    levels = [LevelConfig(cell=cell, block=block) for cell, block in levels]
    heads = PyramidHeads(levels, (8, 8), 6, DIM)
    assert heads.reads == reads
    assert len(heads.heads) == len(reads)
    assert finest_level(levels) == fill


def test_heads_read_the_map_at_the_hidden_cells() -> None:
    levels = [LevelConfig(cell=1), LevelConfig(cell=2)]
    heads = PyramidHeads(levels, (14, 14), 6, DIM)
    maps = [torch.randn(2, 6, n, n) for n in (14, 7, 4)]
    targets = [torch.randint(0, 196, (2, 3, 4)), torch.randint(0, 49, (2, 3, 1))]
    found = heads(maps, targets)
    assert [level for level, _ in found] == [0, 1, 1]
    for number, (level, said) in enumerate(found):
        side = (14, 7)[level]
        for image, query in itertools.product(range(2), range(said.shape[1])):
            row, column = divmod(int(targets[level].flatten(1)[image, query]), side)
            if number == 2:  # 4p has no level: its cells are repeated on to the grid of 2p
                row, column = row // 2, column // 2
            expected = heads.heads[number](maps[number][image, :, row, column])
            torch.testing.assert_close(said[image, query], expected, atol=1e-6, rtol=1e-6)


def test_a_finer_map_is_averaged_for_a_coarser_level() -> None:
    heads = PyramidHeads([LevelConfig(cell=2), LevelConfig(cell=4)], (8, 8), 6, DIM)
    maps = [torch.randn(1, 6, n, n) for n in (8, 4, 2)]
    level, said = heads(maps, [torch.arange(16).reshape(1, 1, 16), torch.arange(4).reshape(1, 1, 4)])[2]
    assert level == 0
    expected = heads.heads[2](F.avg_pool2d(maps[0], 2).flatten(2).transpose(1, 2))
    torch.testing.assert_close(said, expected, atol=1e-6, rtol=1e-6)


def test_it_costs_at_most_a_twentieth_of_a_vit_small_step() -> None:
    """The dearer fusion beside the cheaper predictor, on the meta device: forward and twice that for the backward.

    (The counter takes a depthwise convolution's weight gradient for a dense one's, so it cannot count the backward.)
    """
    levels = [LevelConfig(cell=1), LevelConfig(cell=2)]
    with torch.device("meta"):
        encoder = VisionEncoder(EncoderConfig(), inner=(4, 8))
        config = PredictorConfig(embed_dim=384, depth=6, num_heads=6, attention="cross")
        predictor = Predictor(config, 384, (14, 14), (1, 2))
        pyramid = FeaturePyramid(PyramidConfig(fusion="concat"), 384)
        heads = PyramidHeads(levels, (14, 14), 384, 384)
        images, index = torch.empty(1, 3, 224, 224), torch.zeros(1, 54, dtype=torch.int64)
        targets = tuple(torch.zeros(1, 4, n, dtype=torch.int64) for n in (30, 8))

        def cost(function, *args) -> tuple[float, object]:
            with FlopCounterMode(display=False) as counter:
                out = function(*args)
            return counter.get_total_flops(), out

        target, _ = cost(encoder, images)
        context, found = cost(encoder, images, index, (4, 8, "last"))
        predicted, predictions = cost(predictor, found["last"], index, targets)
        made, maps = cost(pyramid, list(found.values()), (14, 14), index, predictions[0], targets[0].flatten(1))
        read, _ = cost(heads, maps, targets)
    assert 0 < 3 * (made + read) < 0.05 * (target + 3 * (context + predicted))
