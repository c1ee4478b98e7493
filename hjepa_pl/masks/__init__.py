"""Masks: which patches the context encoder sees and which cells are predicted."""

from collections.abc import Callable
from functools import partial

from hjepa_pl.masks.base import MaskGenerator, MaskShape
from hjepa_pl.masks.config import MaskConfig
from hjepa_pl.masks.hierarchical import HierarchicalMasks
from hjepa_pl.masks.multiblock import MultiBlockMasks
from hjepa_pl.masks.random import RandomMasks
from hjepa_pl.types import ConfigError

__all__ = [
    "HierarchicalMasks", "MaskConfig", "MaskGenerator", "MaskShape", "MultiBlockMasks", "RandomMasks", "build_masks",
]  # fmt: skip

_Maker = Callable[[MaskConfig, tuple[int, int], tuple[int, ...], int], MaskGenerator]


def build_masks(
    config: MaskConfig, grid: tuple[int, int], cells: tuple[int, ...], seed: int, joint: bool = True
) -> MaskGenerator:
    """Make the mask generator of a config for a grid and the levels' cells.

    Args:
        config: What is hidden.
        grid: Rows and columns of patches.
        cells: Side of the cells of each token level, in patches, finest level first.
        seed: Seed of the run.
        joint: Whether all targets of a level are predicted in one pass: each cell once, however many blocks hold it.
            Else each block is a pass of its own, whole.

    Raises:
        ConfigError: If a cell does not divide the grid or the masks are impossible on it.
    """
    kinds: dict[str, _Maker] = {
        "multiblock": partial(MultiBlockMasks, joint=joint),
        "hierarchical": partial(HierarchicalMasks, joint=joint),
        "random": RandomMasks,
    }
    make = kinds[config.kind]
    for level, cell in enumerate(cells):
        if grid[0] % cell or grid[1] % cell:
            divide = [c for c in range(1, min(grid) + 1) if grid[0] % c == 0 and grid[1] % c == 0]
            # Those on which the masks are possible; where none is, another key is at fault too and is named next.
            fit = [c for c in divide if _is_possible(make, config, grid, cells, level, c)] or divide
            raise ConfigError(
                f"levels.cell {cell} does not divide the grid of {grid[0]} x {grid[1]} patches; "
                f"{', '.join(map(str, fit))} would do."
            )
    return make(config, grid, cells, seed)


def _is_possible(
    make: _Maker, config: MaskConfig, grid: tuple[int, int], cells: tuple[int, ...], level: int, cell: int
) -> bool:
    """Whether masks can be made with another cell at a level, whatever other levels' cells do not divide the grid."""
    others = [c for i, c in enumerate(cells) if i != level and grid[0] % c == 0 and grid[1] % c == 0]
    try:
        make(config, grid, tuple(sorted([*others, cell])), 0)
    except ConfigError:
        return False
    return True
