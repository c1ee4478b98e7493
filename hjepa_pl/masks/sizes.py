"""Sizes of blocks of whole cells with given areas and aspect ratios."""

import math

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import as_typed

Size = tuple[int, int]
"""Height and width of a block, in patches."""
MAX_SHAPES = 6
"""Maximum of shapes in a table."""
NEAR = 0.5
"""Maximal distance (in log units, area plus aspect) of a snapped block from the ranges of the config."""


def has_exact(grid: Size, cell: int, scale: tuple[float, float], aspect: tuple[float, float]) -> bool:
    """Return True if a block of whole cells has an area and an aspect within the ranges."""
    return any(
        not _outside(height * width / (grid[0] * grid[1]), scale) and not _outside(height / width, aspect)
        for height in range(cell, grid[0] + 1, cell)
        for width in range(cell, grid[1] + 1, cell)
    )


def block_sizes(grid: Size, cell: int, scale: tuple[float, float], aspect: tuple[float, float]) -> list[Size]:
    """Return sizes in whole cells, those within the ranges first and at least one.

    Args:
        grid: Height and width in patches.
        cell: Size of the cells, in patches.
        scale: Smallest and largest area, as a fraction of the grid.
        aspect: Smallest and largest height over width.

    Raises:
        ConfigError: If no block is near the ranges.
    """
    rows, columns = grid
    # Snapped blocks may be wide or tall, whichever the range prefers.
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
            f"a grid of {rows} x {columns} patches has no room for a target block and a context; "
            "use a smaller encoder.patch_size or a larger encoder.img_size."
        )
    ranked.sort()
    if ranked[0][0] > NEAR:
        _, height, width = ranked[0]
        raise ConfigError(
            f"invalid `masks.target_scale={as_typed(scale)}`: fits no block of whole cells of {cell} on {rows} x "
            f"{columns} patches with masks.aspect_ratio={as_typed(aspect)}; the nearest is {height} x {width}, "
            f"{height * width / (rows * columns):.2f} of the grid."
        )
    exact = [r for r in ranked if r[0] == 0]
    # With fewer than three exact shapes, the nearest are added, so that the blocks' form still varies.
    near = [r for r in ranked if r[0] <= NEAR][:MAX_SHAPES]
    return [(h, w) for _, h, w in (exact if len(exact) >= 3 else near)]


def nested_sizes(outer: Size, nest: float, step: int) -> list[Size]:
    """Return the sizes, multiples of `step`, nearest to a fraction of a block's area and to its aspect ratio.

    Args:
        outer: Height and width of the block that contains it, in patches.
        nest: Area as a fraction of the outer block's.
        step: Size of the cells that it consists of, in patches.

    Returns:
        The best size, or those that tie (a wide and a tall one); empty if the area is less than one cell, or nothing
        smaller than the outer block is near it.
    """
    area = outer[0] * outer[1]
    if nest * area < step * step - 1e-9:
        return []
    ranked = []
    for height in range(step, outer[0] + 1, step):
        for width in range(step, outer[1] + 1, step):
            off = abs(math.log(height * width / area / nest))
            if height * width < area and off <= NEAR:
                aspect = abs(math.log(height / width * outer[1] / outer[0]))
                # The area counts twice, the aspect ratio is the outer block's, and of equals the squarer is first.
                ranked.append((round(2 * off + aspect, 6), round(abs(math.log(height / width)), 6), height, width))
    best = min(ranked)[:2] if ranked else ()
    return [(h, w) for *rank, h, w in ranked if tuple(rank) == best]


def _outside(value: float, bounds: tuple[float, float]) -> float:
    """Return the distance of a value from a range, in log units; 0 inside."""
    return max(0.0, math.log(bounds[0] / value), math.log(value / bounds[1]))
