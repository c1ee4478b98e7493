"""Inverse block masks: a block of patches is visible, all others are hidden (data2vec 2.0, arXiv:2212.07525)."""

import math

import torch

from hjepa_pl.functional.choice import LATER, scores, smallest
from hjepa_pl.functional.counters import Stream, hash_int, uniform
from hjepa_pl.masks.base import MaskGenerator, MaskShape, min_visible
from hjepa_pl.masks.config import MaskConfig
from hjepa_pl.masks.sizes import MAX_SHAPES
from hjepa_pl.types import ConfigError, Counters, Masks
from hjepa_pl.utils.wording import as_typed

_SURPLUS = 1.5
"""Largest area of a block over the number of visible patches; the patches beyond that number are dropped."""


class InverseBlockMasks(MaskGenerator):
    """One block is kept; of what is outside, a fraction is predicted (data2vec 2.0, https://arxiv.org/abs/2212.07525).

    The number of visible patches is the same in every step: blocks of whole cells that hold as many or more, with the
    least surplus, are drawn in several forms; surplus patches are dropped at random, neither seen nor predicted. The
    block may begin anywhere and goes on at the opposite border, so that every patch is seen and predicted equally often
    (a block of such a size within the grid would hold the middle always). Of the hidden cells, those that are predicted
    are drawn at random. Departure from data2vec 2.0: its visible region is a union of several blocks of 3 x 3 patches.
    """

    keys = ("ratio", "aspect_ratio", "predicted")
    several_blocks = False  # the hidden cells are one target block: they are predicted together

    def __init__(
        self, config: MaskConfig, grid: tuple[int, int], cells: tuple[int, ...], seed: int, joint: bool = True
    ) -> None:
        """Make the table of the visible block's shapes.

        Raises:
            ConfigError: If no block of whole cells has the number of visible patches, or they are too few.
        """
        super().__init__(config, grid, cells, seed, joint)
        patches, fewest = grid[0] * grid[1], min_visible(grid[0] * grid[1])
        visible = round((1 - config.ratio) * patches)
        if visible < fewest:
            raise ConfigError(
                f"invalid `masks.ratio={as_typed(config.ratio)}`: leaves {visible} of {patches} patches visible; use "
                f"{math.floor(100 * (1 - fewest / patches)) / 100:g} or less."
            )
        low, high = config.aspect_ratio
        sizes = [
            (height * width, abs(math.log(height / width)), height, width)
            for height in range(self.cell, grid[0] + 1, self.cell)
            for width in range(self.cell, grid[1] + 1, self.cell)
            if visible <= height * width <= _SURPLUS * visible and height * width < patches
        ]
        fitting = [size for size in sizes if low <= size[2] / size[3] <= high]
        if not fitting:
            raise ConfigError(
                f"invalid `masks.ratio={as_typed(config.ratio)}`: no block of whole cells of {self.cell} holds the "
                f"{visible} visible of {grid[0]} x {grid[1]} patches with masks.aspect_ratio="
                f"{as_typed(config.aspect_ratio)}; use another ratio, a wider aspect_ratio or smaller cells."
            )
        self.shapes = tuple(self._shape(size[2], size[3], visible) for size in sorted(fitting)[:MAX_SHAPES])

    def _shape(self, height: int, width: int, visible: int) -> MaskShape:
        hidden = (self.grid[0] * self.grid[1] - height * width) // self.cell**2
        predicted = max(1, round(self.config.predicted * hidden))
        return MaskShape(height, width, 1, visible, predicted=(predicted,))

    def _draw(self, counters: Counters) -> Masks:
        shape, (rows, columns), cell = self.shape_of(counters.step), self.grid, self.cell
        key, position = hash_int(self.seed, counters.epoch, Stream.BLOCK_PLACE), counters.position
        u, device = uniform(key, position, 2), position.device
        inside = []
        for axis, (length, size) in enumerate(((rows, shape.height), (columns, shape.width))):
            places = length // cell
            first = (u[:, axis] * places).long().clamp_(max=places - 1)[:, None]
            inside.append((torch.arange(places, device=device) - first) % places < size // cell)
        kept = inside[0][:, :, None] & inside[1][:, None]  # (B, rows, columns) of whole cells
        key = hash_int(self.seed, counters.epoch, Stream.KEEP)
        of_patches = scores(key, position, rows * columns)
        outside = ~kept.repeat_interleave(cell, dim=1).repeat_interleave(cell, dim=2).flatten(1)
        context = smallest(of_patches.add_(outside, alpha=LATER), shape.visible)
        of_cells = scores(hash_int(key, 1), position, kept[0].numel())
        chosen = smallest(of_cells.add_(kept.flatten(1), alpha=LATER), shape.predicted[0])
        top, left = chosen // (columns // cell) * cell, chosen % (columns // cell) * cell
        targets = (self._cells_of(c, top, left, (cell, cell)) for c in self.cells)
        return Masks(context, tuple(t.flatten(1)[:, None] for t in targets))
