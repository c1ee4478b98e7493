"""Masks: which patches the context encoder sees and which cells are predicted."""

from hjepa_pl.masks.base import MaskGenerator, MaskShape
from hjepa_pl.masks.multiblock import MultiBlockMasks
from hjepa_pl.masks.random import RandomMasks
from hjepa_pl.masks.settings import MaskConfig
from hjepa_pl.types import ConfigError

__all__ = ["MaskConfig", "MaskGenerator", "MaskShape", "MultiBlockMasks", "RandomMasks", "build_masks"]


def build_masks(config: MaskConfig, grid: tuple[int, int], cells: tuple[int, ...], seed: int) -> MaskGenerator:
    """Make the mask generator of a config for a grid and the levels' cells.

    Raises:
        ConfigError: If a cell does not divide the grid or the masks are impossible on it.
    """
    for cell in cells:
        if grid[0] % cell or grid[1] % cell:
            fit = [c for c in range(1, min(grid)) if grid[0] % c == 0 and grid[1] % c == 0]
            raise ConfigError(
                f"levels.cell {cell} does not divide the grid of {grid[0]} x {grid[1]} patches; "
                f"{', '.join(map(str, fit))} would do."
            )
    kinds = {"multiblock": MultiBlockMasks, "random": RandomMasks}
    return kinds[config.kind](config, grid, cells, seed)
