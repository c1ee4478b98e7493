"""Hierarchical masks: each level predicts its own block, nested in that of the next coarser level."""

import math
from collections.abc import Iterator
from copy import copy

import torch
from torch import Tensor

from hjepa_pl.functional.choice import LATER, scores, smallest
from hjepa_pl.functional.counters import Stream, hash_int, uniform
from hjepa_pl.masks.base import MaskShape
from hjepa_pl.masks.block_masks import COVERED, BlockMasks, Placed
from hjepa_pl.masks.config import MaskConfig
from hjepa_pl.masks.sizes import MAX_SHAPES, Size, nested_sizes
from hjepa_pl.types import ConfigError, Counters, Masks
from hjepa_pl.utils.wording import as_typed


class HierarchicalMasks(BlockMasks):
    """Wide target blocks for the coarsest level, and inside each a smaller one for every finer level.

    The coarsest level (the last) predicts what is far from the context, in large cells; the finest predicts details in
    the middle of the same block. The context is the grid outside the coarsest blocks. Block t of each level is inside
    block t of the next coarser level, so that a separate pass (`predictor.targets: separate`) has one coarse block and
    all blocks nested in it. Blocks consist of whole cells of their level (and of the finer ones), at all positions in
    the parent with equal probability: every cell of the grid is reached at every level, but its border less often than
    its middle, the more so the finer the level.
    """

    keys = (*BlockMasks.keys, "nest")

    default_scales = ((0.2, 0.35),)
    prefers_several = True

    def __init__(
        self, config: MaskConfig, grid: tuple[int, int], cells: tuple[int, ...], seed: int, joint: bool = True
    ) -> None:
        """Make the table of shapes.

        Raises:
            ConfigError: If there is one level, if the levels are not ordered finest first, if no block can be nested,
                or if every shape leaves too few visible patches.
        """
        if len(cells) < 2:
            raise ConfigError(
                "invalid `masks.kind=hierarchical`: has no effect with one token level; add another to levels, or set "
                "masks.kind to multiblock."
            )
        if list(cells) != sorted(cells):
            raise ConfigError(
                f"invalid `levels.cell={as_typed(cells)}`: masks.kind hierarchical needs the finest level first; use "
                f"the order {as_typed(sorted(cells))}."
            )
        self.nest = config.nest
        # A level's block is also whole in the cells of all finer levels, so that theirs fit into it.
        self.steps = tuple(math.lcm(*cells[: level + 1]) for level in range(len(cells)))
        super().__init__(config, grid, cells, seed, joint)
        nested = [s._replace(inner=i) for s in self.shapes for i in self._chains((s.height, s.width), self.nest)]
        self.shapes = tuple(nested[:MAX_SHAPES])
        if joint:
            self.shapes = tuple(self._count_inner(shape) for shape in self.shapes)

    def _choose(self, sizes: list[Size]) -> list[Size]:
        """Return sizes that hold a chain of nested blocks, spread over the range of areas.

        Raises:
            ConfigError: If none does.
        """
        held = {s for s in sizes if self._chains(s, self.nest)}
        if not held:
            fit = [n / 10 for n in range(1, 10) if any(self._chains(s, n / 10) for s in sizes)]
            fix = f"use {', '.join(map(str, fit))}" if fit else "set masks.kind to multiblock, or use smaller cells"
            height, width = self.grid
            raise ConfigError(
                f"invalid `masks.nest={as_typed(self.nest)}`: no smaller block of whole cells fits into the next "
                f"coarser level's, with cells {as_typed(self.cells)} and coarsest blocks such as {sizes[0][0]} x "
                f"{sizes[0][1]} on {height} x {width} patches; {fix}."
            )
        # By area, wide and tall blocks in alternating order, so that an even choice has both.
        forms = sorted({(h * w, min(h, w), max(h, w)) for h, w in held})
        ordered = [s for i, (_, a, b) in enumerate(forms) for s in sorted({(a, b), (b, a)} & held, reverse=i % 2 == 1)]
        count = min(MAX_SHAPES, len(ordered))
        return [ordered[i * (len(ordered) - 1) // max(count - 1, 1)] for i in range(count)]

    def _chains(self, outer: Size, nest: float) -> list[tuple[Size, ...]]:
        """Return the sizes of the finer levels' blocks, finest first, in a coarsest block; several on a tie."""

        def inside(size: Size, level: int) -> list[tuple[Size, ...]]:
            if level < 0:
                return [()]
            return [(*finer, s) for s in nested_sizes(size, nest, self.steps[level]) for finer in inside(s, level - 1)]

        return inside(outer, len(self.cells) - 2)

    def _draw(self, counters: Counters) -> Masks:
        shape = self.shape_of(counters.step)
        placed = self._place(shape, counters)
        if not self.joint:
            targets = [self._cells_of(self.cells[-1], placed.top, placed.left, (shape.height, shape.width))]
            for level, (top, left) in self._nested(shape, placed, counters):
                targets.append(self._cells_of(self.cells[level], top, left, shape.inner[level]))
            return Masks(self._context(placed.covered, shape, self._scores(counters)), tuple(reversed(targets)))
        predicted, context = self._divide(shape, placed, counters)
        targets = [self._split(predicted, self.cell, self.cells[-1])[:, None]]
        for level, corners in self._nested(shape, placed, counters):
            predicted = self._predicted_cells(predicted, level, corners, counters, shape, shape.predicted[level])
            targets.append(self._split(predicted, self.steps[level], self.cells[level])[:, None])
        return Masks(context, tuple(reversed(targets)))

    def _nested(self, shape: MaskShape, placed: Placed, counters: Counters) -> Iterator[tuple[int, Tensor]]:
        """Draw each finer level's blocks in those of the next coarser level: the level, and corners (2, B, T)."""
        key = hash_int(self.seed, counters.epoch, Stream.NEST)
        u = uniform(key, counters.position, 2 * len(shape.inner) * shape.blocks)
        u = u.reshape(len(u), 2, len(shape.inner), shape.blocks)
        corners, size = torch.stack([placed.top, placed.left]), (shape.height, shape.width)
        for level in reversed(range(len(shape.inner))):
            step, inner = self.steps[level], shape.inner[level]
            positions = [(o - i) // step + 1 for o, i in zip(size, inner, strict=True)]
            shift = [(u[:, axis, level] * n).long().clamp_(max=n - 1) * step for axis, n in enumerate(positions)]
            corners, size = corners + torch.stack(shift), inner
            yield level, corners

    def _predicted_cells(
        self, coarse: Tensor, level: int, corners: Tensor, counters: Counters, shape: MaskShape, count: int | None
    ) -> Tensor:
        """Return the cells that a finer level predicts, all within those of the next coarser level.

        Those that its blocks cover, less a surplus that is dropped at random, and others if these are too few.

        Args:
            coarse: (B, U) cells that the coarser level predicts.
            level: Index of the finer level.
            corners: (2, B, T) of its blocks.
            counters: Of the batch.
            shape: Of the step.
            count: Number of cells; None is the quantile over the batch.
        """
        step = self.steps[level]
        own = self._split(coarse, self.steps[level + 1], step)
        covered = self._covered(corners, shape.inner[level], step).gather(1, own) > 0
        if count is None:
            count = max(1, int(covered.sum(dim=1).sort().values[int(COVERED[0] * len(own))]))
        score = scores(hash_int(self.seed, counters.epoch, Stream.KEEP, level), counters.position, own.shape[1])
        return own.gather(1, smallest(score.add_(~covered, alpha=LATER), count))

    def _count_inner(self, shape: MaskShape) -> MaskShape:
        """Add the numbers of cells that the finer levels predict: quantiles over 2,000 placements of a fixed key."""
        fixed, counters = copy(self), Counters(0, 0, torch.arange(2000, device="cpu"))
        fixed.seed = 0
        with torch.autocast("cpu", enabled=False):
            placed = fixed._place(shape, counters)
            predicted = fixed._divide(shape, placed, counters)[0]
            for level, corners in fixed._nested(shape, placed, counters):
                predicted = fixed._predicted_cells(predicted, level, corners, counters, shape, None)
                shape = shape._replace(predicted=(predicted.shape[1], *shape.predicted))
        return shape
