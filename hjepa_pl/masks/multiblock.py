"""Multi-block masks (I-JEPA, arXiv:2301.08243, appendix A.1), snapped to whole cells of the levels."""

from hjepa_pl.masks.block_masks import BlockMasks
from hjepa_pl.types import Counters, Masks


class MultiBlockMasks(BlockMasks):
    """Several target blocks an image, of one size a step, that every level predicts; the context is what they leave."""

    default_scales = ((0.15, 0.2), (0.2, 0.25))

    def _draw(self, counters: Counters) -> Masks:
        shape = self.shape_of(counters.step)
        placed = self._place(shape, counters)
        if self.joint:
            asked, context = self._divide(shape, placed, counters)
            return Masks(context, tuple(self._split(asked, self.cell, cell)[:, None] for cell in self.cells))
        size = (shape.height, shape.width)
        targets = tuple(self._cells_of(cell, placed.top, placed.left, size) for cell in self.cells)
        return Masks(self._context(placed.covered, shape, self._scores(counters)), targets)
