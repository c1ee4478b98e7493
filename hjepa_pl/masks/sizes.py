"""Sizes of blocks of whole cells, near the areas and aspects that are asked for."""

import math

from hjepa_pl.types import ConfigError

Size = tuple[int, int]
"""Rows and columns of a block, in patches."""
MAX_SHAPES = 6
"""Most rows of a table."""
NEAR = 0.5
"""How far (in log units, area and aspect added) a snapped block may lie outside the ranges asked for."""


def has_exact(grid: Size, cell: int, scale: tuple[float, float], aspect: tuple[float, float]) -> bool:
    """Return whether a block of whole cells has an area and an aspect within the ranges."""
    return any(
        not _outside(height * width / (grid[0] * grid[1]), scale) and not _outside(height / width, aspect)
        for height in range(cell, grid[0] + 1, cell)
        for width in range(cell, grid[1] + 1, cell)
    )


def block_sizes(grid: Size, cell: int, scale: tuple[float, float], aspect: tuple[float, float]) -> list[Size]:
    """Return sizes in whole cells, those within the ranges first and at least one.

    Args:
        grid: Rows and columns of patches.
        cell: Side of the cells.
        scale: Smallest and largest area, as a share of the grid.
        aspect: Smallest and largest height over width.

    Raises:
        ConfigError: If no block is near the ranges.
    """
    rows, columns = grid
    # Snapped blocks may lie down as well as stand, whichever way the range leans.
    either = (min(aspect[0], 1 / aspect[1]), max(aspect[1], 1 / aspect[0]))
    ranked = []
    for height in range(cell, rows + 1, cell):
        for width in range(cell, columns + 1, cell):
            if height * width < rows * columns:
                area = height * width / (rows * columns)
                inside = not _outside(area, scale) and not _outside(height / width, aspect)
                off = 0.0 if inside else 1e-6 + _outside(area, scale) + _outside(height / width, either)
                ranked.append((round(off, 6), height, width))
    if not ranked:
        raise ConfigError(
            f"a grid of {rows} x {columns} patches holds no target block beside a context; "
            "take a smaller encoder.patch_size or a larger encoder.img_size."
        )
    ranked.sort()
    if ranked[0][0] > NEAR:
        _, height, width = ranked[0]
        raise ConfigError(
            f"masks.target_scale {list(scale)} with aspect_ratio {list(aspect)} fits no block of whole "
            f"cells of {cell} on {rows} x {columns} patches; the nearest is {height} x {width}, "
            f"{height * width / (rows * columns):.2f} of the grid."
        )
    exact = [r for r in ranked if r[0] == 0]
    # Where snapping leaves under three shapes, the nearest join, so that the blocks' form still varies.
    near = [r for r in ranked if r[0] <= NEAR][:MAX_SHAPES]
    return [(h, w) for _, h, w in (exact if len(exact) >= 3 else near)]


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


def _outside(value: float, bounds: tuple[float, float]) -> float:
    """Return how far a value lies outside a range, in log units."""
    return max(0.0, math.log(bounds[0] / value), math.log(value / bounds[1]))
