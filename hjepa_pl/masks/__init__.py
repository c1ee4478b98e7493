"""Masks in plain PyTorch: which patches the context encoder sees, and which cells are predicted."""

import inspect
from dataclasses import fields

from hjepa_pl.masks.base import MaskGenerator, MaskShape
from hjepa_pl.masks.config import MaskConfig
from hjepa_pl.masks.hierarchical import HierarchicalMasks
from hjepa_pl.masks.inverse_block import InverseBlockMasks
from hjepa_pl.masks.multiblock import MultiBlockMasks
from hjepa_pl.masks.random import RandomMasks
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.registry import Registry
from hjepa_pl.utils.wording import as_typed, either

__all__ = [
    "MASKS", "HierarchicalMasks", "InverseBlockMasks", "MaskConfig", "MaskGenerator", "MaskShape", "MultiBlockMasks",
    "RandomMasks", "build_masks", "find_masks",
]  # fmt: skip

MASKS: Registry[type[MaskGenerator]] = Registry(
    "masks.kind",
    {
        "multiblock": MultiBlockMasks,
        "hierarchical": HierarchicalMasks,
        "random": RandomMasks,
        "inverse_block": InverseBlockMasks,
    },
)


def find_masks(config: MaskConfig) -> type[MaskGenerator]:
    """Return the mask generator of a config.

    Raises:
        ConfigError: If it does not exist, or does not read a key that is set.
    """
    kind = MASKS.find(config.kind)
    if not (isinstance(kind, type) and issubclass(kind, MaskGenerator)):
        raise ConfigError(f"invalid `masks.kind={config.kind}`: must be a subclass of hjepa_pl.masks.MaskGenerator.")
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in ("kind", "strategy", "per_image", *kind.keys) and value != getattr(MaskConfig, field.name):
            raise ConfigError(
                f"invalid `masks.{field.name}={as_typed(value)}`: has no effect with masks.kind={config.kind}; "
                "remove it."
            )
    takes = list(inspect.signature(kind).parameters)[5:]  # after config, grid, cells, seed, joint
    for option in config.options or {}:
        if option not in takes:
            known = f"its options are {', '.join(takes)}" if takes else "it has no options"
            raise ConfigError(f"masks.options does not accept '{option}' with masks.kind={config.kind}; {known}.")
    return kind


def build_masks(
    config: MaskConfig, grid: tuple[int, int], cells: tuple[int, ...], seed: int, joint: bool = True
) -> MaskGenerator:
    """Make the mask generator of a config for a grid and the levels' cells.

    Args:
        config: Settings of the masks.
        grid: Height and width in patches.
        cells: Size of the cells of each token level, in patches, finest level first.
        seed: Seed of the run.
        joint: True if all targets of a level are predicted in one pass: each cell once, however many blocks contain it.
            Otherwise each block has a pass of its own.

    Raises:
        ConfigError: If a cell does not divide the grid or the masks are impossible on it.

    Example:
        >>> import torch
        >>> from hjepa_pl.types import Counters
        >>> masks = build_masks(MaskConfig(kind="random", ratio=0.5), grid=(8, 8), cells=(1, 2), seed=0)
        >>> drawn = masks(Counters(epoch=0, step=0, position=torch.arange(4)))  # of four images
        >>> drawn.context.shape, [cells.shape for cells in drawn.targets]
        (torch.Size([4, 32]), [torch.Size([4, 1, 32]), torch.Size([4, 1, 8])])
    """
    kind = find_masks(config)
    for level, cell in enumerate(cells):
        if grid[0] % cell or grid[1] % cell:
            divisors = [c for c in range(1, min(grid) + 1) if grid[0] % c == 0 and grid[1] % c == 0]
            # Those on which the masks are possible; if none is, another key is at fault too and is named next.
            possible = [c for c in divisors if _is_possible(kind, config, grid, cells, level, c)] or divisors
            raise ConfigError(
                f"invalid `levels.cell={cell}`: must divide the grid of {grid[0]} x {grid[1]} patches; use "
                f"{either(map(str, possible))}."
            )
    return kind(config, grid, cells, seed, joint, **(config.options or {}))


def _is_possible(
    kind: type[MaskGenerator],
    config: MaskConfig,
    grid: tuple[int, int],
    cells: tuple[int, ...],
    level: int,
    cell: int,
) -> bool:
    """Return True if masks can be made with another cell at a level, without the levels whose cells do not divide."""
    others = [c for i, c in enumerate(cells) if i != level and grid[0] % c == 0 and grid[1] % c == 0]
    try:
        kind(config, grid, tuple(sorted([*others, cell])), 0, **(config.options or {}))
    except ConfigError:
        return False
    return True
