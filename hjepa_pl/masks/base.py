"""What every mask generator is: sizes fixed beforehand, places drawn by counters."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_pl.functional.counters import Stream, bits, hash_int
from hjepa_pl.types import Counters, Masks

_PLACE_BITS = 24
_HIDDEN = 2 ** (32 + _PLACE_BITS)
"""More than any score."""


class MaskShape(NamedTuple):
    """One row of a generator's table: the sizes of a step, the same for every image."""

    height: int
    """Rows of a target block, in patches."""
    width: int
    """Columns of a target block, in patches."""
    blocks: int
    """Target blocks an image."""
    visible: int
    """Patches that the context encoder sees."""
    inner: tuple[tuple[int, int], ...] = ()
    """Hierarchical masks: rows and columns of each finer level's block, finest level first."""


def min_visible(patches: int) -> int:
    """Return the least number of visible patches that is accepted: a quarter, 24 where that is under 3/8, and 4."""
    return max(math.ceil(patches / 4), min(24, patches * 3 // 8), 4)


class MaskGenerator(ABC):
    """Draws masks for a batch on its device, without a loop over images.

    Args:
        grid: Rows and columns of patches.
        cells: Side of the cells of each token level, in patches; blocks are made of whole cells of all.
        seed: Seed of the run.
    """

    shapes: tuple[MaskShape, ...]
    """The table that each step's sizes are drawn from."""

    def __init__(self, grid: tuple[int, int], cells: tuple[int, ...], seed: int) -> None:
        self.grid, self.cells, self.seed = grid, cells, seed
        # Whole cells of every level at once: the largest, unless it is no multiple of the others.
        self.cell = math.lcm(*cells)

    def shape_of(self, step: int) -> MaskShape:
        """Return the sizes of a step: a function of the seed and the step only, so that all ranks agree."""
        return self.shapes[hash_int(self.seed, step, Stream.BLOCK_SHAPE) % len(self.shapes)]

    @abstractmethod
    def __call__(self, counters: Counters) -> Masks:
        """Draw the masks of a batch, on the device of `counters.position`."""

    def _keep(self, visible: Tensor, count: int, counters: Counters) -> Tensor:
        """Pick `count` of the visible patches (B, N) at random: (B, count) indices, in no order.

        Which are dropped is random, so that no corner of the image is seen less often (I-JEPA cuts a raster-ordered
        list, which drops the lower right).
        """
        key = hash_int(self.seed, counters.epoch, Stream.KEEP)
        score = scores(key, counters.position, visible.shape[1])
        return smallest(score.masked_fill_(~visible, _HIDDEN), count)

    def _cells_of(self, cell: int, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the cells of blocks of `size` at corners (B, T), in patches: (B, T, M) indices on the cells' grid."""
        rows, columns = (torch.arange(side // cell, device=top.device) for side in size)
        across = self.grid[1] // cell
        first = top // cell * across + left // cell
        return first[..., None] + (rows[:, None] * across + columns).flatten()


def scores(key: int, position: Tensor, n: int) -> Tensor:
    """Draw a number for each of `n` places, (B, n) int64 of 56 bits.

    The place is in the low bits: no two are equal, so that every device picks the same.
    """
    place = torch.arange(n, device=position.device)
    return bits(key, position, n).bitwise_left_shift_(_PLACE_BITS).add_(place)


def smallest(values: Tensor, count: int) -> Tensor:
    """Return where the smallest scores of each row (B, N) stand: (B, count), in no order. The scores are given up."""
    # NumPy's partition takes a quarter of topk's time on a CPU. (A fake tensor has no numbers.)
    if values.device.type == "cpu" and type(values) is Tensor:
        values.numpy().partition(count - 1, axis=1)
        chosen = values[:, :count]
    else:
        chosen = values.topk(count, dim=1, largest=False, sorted=False).values
    return chosen & (2**_PLACE_BITS - 1)
