"""Multi-block masks (I-JEPA, arXiv:2301.08243, appendix A.1), snapped to whole cells of the levels."""

from hjepa_pl.masks.block_masks import BlockMasks
from hjepa_pl.types import Counters, Masks


class MultiBlockMasks(BlockMasks):
    """Several target blocks per image, of one size in a step, predicted at every level; the context is the rest.

    I-JEPA, https://arxiv.org/abs/2301.08243, appendix A.1; departures from its code: `BlockMasks`.

    Example:
        >>> import torch
        >>> from hjepa_pl.masks import MaskConfig
        >>> from hjepa_pl.types import Counters
        >>> masks = MultiBlockMasks(MaskConfig(num_targets=4), grid=(14, 14), cells=(1,), seed=0)
        >>> drawn = masks(Counters(epoch=0, step=0, position=torch.arange(32)))  # of 32 images
        >>> visible, hidden = drawn.context[0].tolist(), drawn.targets[0][0].flatten().tolist()
        >>> set(visible) & set(hidden)
        set()
    """

    default_scales = ((0.15, 0.2), (0.2, 0.25))

    def _draw(self, counters: Counters) -> Masks:
        shape = self.shape_of(counters.step)
        placed = self._place(shape, counters)
        if self.joint:
            predicted, context = self._divide(shape, placed, counters)
            return Masks(context, tuple(self._split(predicted, self.cell, cell)[:, None] for cell in self.cells))
        size = (shape.height, shape.width)
        targets = tuple(self._cells_of(cell, placed.top, placed.left, size) for cell in self.cells)
        return Masks(self._context(placed.covered, shape, self._scores(counters)), targets)
