"""Base class of the mask generators: sizes from a fixed table, positions drawn by counters."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.precision import without_autocast
from hjepa_pl.masks.config import MaskConfig
from hjepa_pl.types import Counters, Masks

_REPETITION = 48
"""Bit of a counter from which the number of an image's mask is added; that of a local crop has those from 32 on."""


class MaskShape(NamedTuple):
    """A row of a generator's table: the sizes of a step, the same for every image."""

    height: int
    """Height of a target block (inverse block masks: of the visible block), in patches."""
    width: int
    """Width of that block, in patches."""
    blocks: int
    """Target blocks per image."""
    visible: int
    """Patches that the context encoder sees."""
    inner: tuple[tuple[int, int], ...] = ()
    """Hierarchical masks: height and width of each finer level's block, finest level first."""
    predicted: tuple[int, ...] = ()
    """Joint targets: number of distinct cells that are predicted, in whole cells of all levels (hierarchical masks: of
    each level, finest first, in cells that are whole at the finer levels too). Empty: all of every block."""

    @property
    def lengths(self) -> tuple[int | tuple[int, ...], ...]:
        """Numbers of patches and cells: two shapes with equal ones take the same operations and memory."""
        if self.predicted:
            return self.visible, self.predicted
        areas = (self.height * self.width, *(height * width for height, width in self.inner))
        return self.visible, self.blocks, areas


def min_visible(patches: int) -> int:
    """Return the smallest number of visible patches: a quarter, at least min(24, 3/8 of the patches) and 4."""
    return max(math.ceil(patches / 4), min(24, patches * 3 // 8), 4)


class MaskGenerator(ABC):
    """Draws masks for a batch on its device, without a loop over images.

    A new one is a subclass that sets `shapes` and implements `_draw`, and its name in `MASKS`.

    Args:
        config: Settings of the masks.
        grid: Height and width in patches.
        cells: Size of the cells of each token level, in patches; blocks are made of whole cells of all.
        seed: Seed of the run.
        joint: True if all targets of a level are predicted in one pass.
    """

    keys: ClassVar[tuple[str, ...]] = ("options",)
    """The keys of `MaskConfig` that it reads; others that are set are rejected."""
    several_blocks: ClassVar[bool] = True
    """False if an image has one target block, so that there are no passes of their own (predictor.targets)."""

    shapes: tuple[MaskShape, ...]
    """The table of sizes; each step uses one row."""

    def __init__(
        self, config: MaskConfig, grid: tuple[int, int], cells: tuple[int, ...], seed: int, joint: bool = True
    ) -> None:
        self.config, self.grid, self.cells, self.seed, self.joint = config, grid, cells, seed, joint
        # Whole cells of every level at once: the largest, unless it is no multiple of the others.
        self.cell = math.lcm(*cells)

    def shape_of(self, step: int) -> MaskShape:
        """Return the sizes of a step: a function of seed and step only, the same on all ranks."""
        return self.shapes[hash_int(self.seed, step, Stream.BLOCK_SHAPE) % len(self.shapes)]

    def __call__(self, counters: Counters) -> Masks:
        """Draw the masks of a batch, on the device of `counters.position`, in full precision.

        Under autocast, matrix products have 16 bits, which round numbers of patches above 256.

        Returns:
            Masks of the B images, then with `masks.per_image` M a second mask of each, and so on: M * B rows. The first
            B are those of M = 1.
        """
        if self.config.per_image > 1:
            number = torch.arange(self.config.per_image, device=counters.position.device)[:, None]
            counters = counters._replace(position=(counters.position + (number << _REPETITION)).flatten())
        with without_autocast(counters.position.device):
            return self._draw(counters)

    @abstractmethod
    def _draw(self, counters: Counters) -> Masks:
        """Return the masks of a batch: `context` (B, K) and per level (B, T, M), functions of the counters."""

    def _cells_of(self, cell: int, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the cells of blocks of `size` at corners (B, T), in patches: (B, T, M) indices on the cells' grid."""
        rows, columns = (torch.arange(length // cell, device=top.device) for length in size)
        width = self.grid[1] // cell
        first = top // cell * width + left // cell
        return first[..., None] + (rows[:, None] * width + columns).flatten()
