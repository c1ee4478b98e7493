"""Multi-block masks (I-JEPA, arXiv:2301.08243, appendix A.1), snapped to whole cells of the levels."""

from hjepa_pl.masks.blocks import BlockMasks
from hjepa_pl.types import Counters, Masks


class MultiBlockMasks(BlockMasks):
    """Several target blocks an image, of one size a step, that every level predicts; the context is what they leave."""

    default_scale = (0.15, 0.2)

    def _draw(self, counters: Counters) -> Masks:
        shape = self.shape_of(counters.step)
        top, left, context = self._place(shape, counters)
        size = (shape.height, shape.width)
        return Masks(context, tuple(self._cells_of(cell, top, left, size) for cell in self.cells))
