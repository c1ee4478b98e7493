"""Hierarchical masks: every level predicts a block of its own, nested in that of the next coarser level."""

import math

from hjepa_pl.functional.counters import Stream, hash_int, uniform
from hjepa_pl.masks.blocks import MAX_SHAPES, NEAR, BlockMasks
from hjepa_pl.masks.settings import MaskConfig
from hjepa_pl.types import ConfigError, Counters, Masks

Size = tuple[int, int]


class HierarchicalMasks(BlockMasks):
    """Wide target blocks for the coarsest level, and inside each a smaller one for every finer level.

    The coarsest level (the last) is asked for what is far from the context, in large cells; the finest for details
    in the middle of the same hole. Everything that any level predicts lies in the coarsest blocks, and the context is
    what these leave of the grid. Block t of each level lies in block t of the next coarser level, so that a pass of
    its own (`predictor.targets: separate`) holds one coarse block and all that is nested in it. Blocks are made of
    whole cells of their level (and of the finer ones), all places in the parent equally likely: every cell of the grid
    is reached at every level, but its border less often than its middle, the more so the finer the level.
    """

    default_scale = (0.2, 0.35)
    prefers_several = True

    def __init__(self, config: MaskConfig, grid: tuple[int, int], cells: tuple[int, ...], seed: int) -> None:
        """Make the table of shapes.

        Raises:
            ConfigError: If there is one level or their order is not finest first, if no block can be nested as asked,
                or if every shape leaves too few visible patches.
        """
        if len(cells) < 2:
            raise ConfigError(
                "masks.kind 'hierarchical' has nothing to nest with one token level; "
                "add a token level to levels, or use masks.kind 'multiblock'."
            )
        if list(cells) != sorted(cells):
            raise ConfigError(
                f"levels with cells {list(cells)} are not in the order that masks.kind 'hierarchical' nests them in; "
                f"give them finest first, {sorted(cells)}."
            )
        self.nest = 0.5 if config.nest is None else config.nest
        # A level's block is also whole in the cells of all finer levels, so that theirs fit into it.
        self.steps = tuple(math.lcm(*cells[: level + 1]) for level in range(len(cells)))
        super().__init__(config, grid, cells, seed)
        nested = [s._replace(inner=i) for s in self.shapes for i in self._chains((s.height, s.width), self.nest)]
        self.shapes = tuple(nested[:MAX_SHAPES])

    def _choose(self, sizes: list[Size]) -> list[Size]:
        """Return sizes that hold a chain of nested blocks, spread over the range of areas.

        Raises:
            ConfigError: If none does.
        """
        held = {s for s in sizes if self._chains(s, self.nest)}
        if not held:
            fit = [n / 10 for n in range(1, 10) if any(self._chains(s, n / 10) for s in sizes)]
            mend = f"{', '.join(map(str, fit))} would do" if fit else "use masks.kind 'multiblock' or smaller cells"
            rows, columns = self.grid
            raise ConfigError(
                f"masks.nest {self.nest} fits no smaller block of whole cells into the next coarser level's, with "
                f"cells {list(self.cells)} and coarsest blocks such as {sizes[0][0]} x {sizes[0][1]} on "
                f"{rows} x {columns} patches; {mend}."
            )
        # By area, lying before standing and standing before lying by turns, so that an even choice has both.
        forms = sorted({(h * w, min(h, w), max(h, w)) for h, w in held})
        ordered = [s for i, (_, a, b) in enumerate(forms) for s in sorted({(a, b), (b, a)} & held, reverse=i % 2 == 1)]
        count = min(MAX_SHAPES, len(ordered))
        return [ordered[i * (len(ordered) - 1) // max(count - 1, 1)] for i in range(count)]

    def _chains(self, outer: Size, nest: float) -> list[tuple[Size, ...]]:
        """Return the sizes of the finer levels' blocks, finest first, in a coarsest block; more than one on a tie."""

        def inside(size: Size, level: int) -> list[tuple[Size, ...]]:
            if level < 0:
                return [()]
            return [(*finer, s) for s in nested_sizes(size, nest, self.steps[level]) for finer in inside(s, level - 1)]

        return inside(outer, len(self.cells) - 2)

    def _draw(self, counters: Counters) -> Masks:
        shape = self.shape_of(counters.step)
        top, left, context = self._place(shape, counters)
        key = hash_int(self.seed, counters.epoch, Stream.NEST)
        u = uniform(key, counters.position, 2 * len(shape.inner) * shape.blocks)
        u = u.reshape(len(u), 2, len(shape.inner), shape.blocks)
        size = (shape.height, shape.width)
        targets = [self._cells_of(self.cells[-1], top, left, size)]
        for level in reversed(range(len(shape.inner))):
            step, inner = self.steps[level], shape.inner[level]
            places = [(o - i) // step + 1 for o, i in zip(size, inner, strict=True)]
            down, right = ((u[:, axis, level] * n).long().clamp_(max=n - 1) * step for axis, n in enumerate(places))
            top, left, size = top + down, left + right, inner
            targets.append(self._cells_of(self.cells[level], top, left, size))
        return Masks(context, tuple(reversed(targets)))


def nested_sizes(outer: Size, nest: float, step: int) -> list[Size]:
    """Return the heights and widths, multiples of `step`, that are nearest to a share of a block's area and its form.

    Args:
        outer: Rows and columns of the block that holds it, in patches.
        nest: Area asked for, as a share of the outer block's.
        step: Side of the cells that it is made of, in patches.

    Returns:
        The best size, or those that tie (a lying and a standing one); empty where the share is less than one cell, or
        nothing smaller than the outer block is near it.
    """
    area = outer[0] * outer[1]
    if nest * area < step * step - 1e-9:
        return []
    ranked = []
    for height in range(step, outer[0] + 1, step):
        for width in range(step, outer[1] + 1, step):
            off = abs(math.log(height * width / area / nest))
            if height * width < area and off <= NEAR:
                turn = abs(math.log(height / width * outer[1] / outer[0]))
                # The area counts twice, the form follows the outer block's, and of equals the squarer is taken.
                ranked.append((round(2 * off + turn, 6), round(abs(math.log(height / width)), 6), height, width))
    best = min(ranked)[:2] if ranked else ()
    return [(h, w) for *rank, h, w in ranked if tuple(rank) == best]
