"""Random masks: single cells (MAE, arXiv:2111.06377)."""

import torch

from hjepa_pl.functional.choice import scores, smallest
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.masks.base import MaskGenerator, MaskShape, min_visible
from hjepa_pl.masks.config import MaskConfig
from hjepa_pl.types import ConfigError, Counters, Masks
from hjepa_pl.utils.wording import as_typed


class RandomMasks(MaskGenerator):
    """A fixed fraction of the cells is hidden and predicted (MAE, https://arxiv.org/abs/2111.06377, section 3)."""

    keys = ("ratio",)
    several_blocks = False  # the cells are one target block: they are predicted together

    def __init__(
        self, config: MaskConfig, grid: tuple[int, int], cells: tuple[int, ...], seed: int, joint: bool = True
    ) -> None:
        """Set the number of hidden cells.

        Raises:
            ConfigError: If the ratio hides nothing, or too much.
        """
        super().__init__(config, grid, cells, seed, joint)
        ratio = config.ratio
        total = (grid[0] // self.cell) * (grid[1] // self.cell)
        hidden = round(ratio * total)
        visible = (total - hidden) * self.cell**2
        if hidden < 1 or visible < min_visible(grid[0] * grid[1]):
            most = 1 - min_visible(grid[0] * grid[1]) / (grid[0] * grid[1])
            raise ConfigError(
                f"invalid `masks.ratio={as_typed(ratio)}`: hides {hidden} of the grid's {total} cells; "
                f"use a ratio from {1 / total:.2f} to {most:.2f}."
            )
        self.shapes = (MaskShape(self.cell, self.cell, hidden, visible),)

    def _draw(self, counters: Counters) -> Masks:
        shape = self.shapes[0]
        columns = self.grid[1] // self.cell
        total = columns * (self.grid[0] // self.cell)
        key = hash_int(self.seed, counters.epoch, Stream.BLOCK_PLACE)
        hidden = smallest(scores(key, counters.position, total), shape.blocks).sort(dim=1).values
        cells = torch.ones(len(hidden), total, dtype=torch.bool, device=hidden.device).scatter_(1, hidden, False)
        visible = cells.reshape(len(hidden), -1, columns)
        visible = visible.repeat_interleave(self.cell, dim=1).repeat_interleave(self.cell, dim=2).flatten(1)
        # Every visible patch is kept: the counts are exact.
        patch = torch.arange(visible.shape[1], device=visible.device)
        context = torch.where(visible, patch, len(patch)).sort(dim=1).values[:, : shape.visible]
        top, left = hidden // columns * self.cell, hidden % columns * self.cell
        targets = (self._cells_of(cell, top, left, (self.cell, self.cell)) for cell in self.cells)
        return Masks(context, tuple(t.flatten(1)[:, None] for t in targets))
