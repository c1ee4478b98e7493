"""What every mask generator is: sizes fixed beforehand, places drawn by counters."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.precision import without_autocast
from hjepa_pl.types import Counters, Masks


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
    asked: tuple[int, ...] = ()
    """Joint targets: the distinct cells that are asked for, in whole cells of all levels (hierarchical masks: of each
    level, finest first, in cells that are whole at the finer levels too). Empty: all of every block."""

    @property
    def lengths(self) -> tuple[int | tuple[int, ...], ...]:
        """Numbers of patches and cells: steps of two shapes with equal ones take the same operations and memory."""
        if self.asked:
            return self.visible, self.asked
        areas = (self.height * self.width, *(height * width for height, width in self.inner))
        return self.visible, self.blocks, areas


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

    def __call__(self, counters: Counters) -> Masks:
        """Draw the masks of a batch, on the device of `counters.position`, whatever the precision of the step.

        Under autocast products and sums would have 16 bits, which round the count of patches beyond 256.
        """
        with without_autocast(counters.position.device):
            return self._draw(counters)

    @abstractmethod
    def _draw(self, counters: Counters) -> Masks:
        """Draw the masks of a batch: `context` (B, K) and per level (B, T, M), all functions of the counters."""

    def _cells_of(self, cell: int, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the cells of blocks of `size` at corners (B, T), in patches: (B, T, M) indices on the cells' grid."""
        rows, columns = (torch.arange(side // cell, device=top.device) for side in size)
        across = self.grid[1] // cell
        first = top // cell * across + left // cell
        return first[..., None] + (rows[:, None] * across + columns).flatten()
