"""Target blocks of one size a step: the table of sizes, the places, and what they leave visible."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.functional.choice import first_true
from hjepa_pl.functional.counters import Stream, hash_int, uniform
from hjepa_pl.masks.base import MaskGenerator, MaskShape, min_visible
from hjepa_pl.masks.settings import MaskConfig
from hjepa_pl.types import ConfigError, Counters

MAX_SHAPES = 6
"""Most rows of a table."""
NEAR = 0.5
"""How far (in log units, area and aspect added) a snapped block may lie outside the ranges asked for."""
_CANDIDATES = 4
"""Placements drawn an image; the first that leaves enough visible is taken."""


class BlockMasks(MaskGenerator):
    """What multi-block and hierarchical masks share: the blocks that are hidden, and the context that they leave.

    Departures from the public I-JEPA code: corners reach the last row and column, scale and aspect are independent,
    the context block is the whole grid, the sizes come from a table of a few shapes, and the number of visible patches
    is fixed for each (about its 5th percentile; the few images below it are drawn again).
    """

    default_scale: ClassVar[tuple[float, float]]
    """Area of a block as a share of the grid, where the config names none."""
    prefers_several: ClassVar[bool] = False
    """Whether several blocks of one shape are better than one block of several shapes, where both would not fit."""

    def __init__(self, config: MaskConfig, grid: tuple[int, int], cells: tuple[int, ...], seed: int) -> None:
        """Make the table of shapes.

        Raises:
            ConfigError: If a cell does not divide the grid, or every shape leaves too few visible patches.
        """
        super().__init__(grid, cells, seed)
        self.scale = config.target_scale or self.default_scale
        self.aspect = config.aspect_ratio or (0.75, 1.5)
        patches = grid[0] * grid[1]
        self.most = patches if config.max_visible is None else round(config.max_visible * patches)
        if self.most < min_visible(patches):
            raise ConfigError(
                f"masks.max_visible {config.max_visible} leaves {self.most} of {patches} patches; "
                f"{math.ceil(100 * min_visible(patches) / patches) / 100} would do."
            )
        sizes = self._block_sizes()
        asked = config.num_targets if isinstance(config.num_targets, int) else None
        # Fewer blocks are better than blocks of one shape only, where both would fit.
        auto = [4, 3, 2, 1] if patches >= 100 else [3, 2, 1]
        tries = [(count, least) for least in (2, 1) for count in ([asked] if asked else auto)]
        if self.prefers_several:
            tries.sort(key=lambda t: t[0] == 1)
        for count, least in tries:
            self.shapes = self._fitting(sizes, count)
            if len(self.shapes) >= least:
                self._check_cap(config)
                return
        for count in range((asked or 1) - 1, 0, -1):
            if self._fitting(sizes, count):
                raise ConfigError(
                    f"masks.num_targets {asked} leaves fewer than {min_visible(patches)} of the "
                    f"{grid[0]} x {grid[1]} patches visible; {count} would do."
                )
        raise ConfigError(
            f"masks.target_scale {list(self.scale)} on a grid of {grid[0]} x {grid[1]} patches in cells of {self.cell} "
            f"leaves fewer than {min_visible(patches)} patches visible; take smaller cells, a smaller "
            "encoder.patch_size or a larger encoder.img_size."
        )

    def _check_cap(self, config: MaskConfig) -> None:
        """Refuse a cap on the visible patches that no shape reaches."""
        if config.max_visible is not None and all(shape.visible < self.most for shape in self.shapes):
            left = max(shape.visible for shape in self.shapes) / (self.grid[0] * self.grid[1])
            raise ConfigError(
                f"masks.max_visible {config.max_visible} does nothing: the blocks leave at most {left:.2f} visible; "
                "lower or remove it."
            )

    def _block_sizes(self) -> list[tuple[int, int]]:
        """Return heights and widths in whole cells, those within the ranges first and at least one."""
        (rows, columns), cell = self.grid, self.cell
        # Snapped blocks may lie down as well as stand, whichever way the range leans.
        aspect = (min(self.aspect[0], 1 / self.aspect[1]), max(self.aspect[1], 1 / self.aspect[0]))
        ranked = []
        for height in range(cell, rows + 1, cell):
            for width in range(cell, columns + 1, cell):
                if height * width < rows * columns:
                    area = height * width / (rows * columns)
                    inside = not _outside(area, self.scale) and not _outside(height / width, self.aspect)
                    off = 0.0 if inside else 1e-6 + _outside(area, self.scale) + _outside(height / width, aspect)
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
                f"masks.target_scale {list(self.scale)} with aspect_ratio {list(self.aspect)} fits no block of whole "
                f"cells of {cell} on {rows} x {columns} patches; the nearest is {height} x {width}, "
                f"{height * width / (rows * columns):.2f} of the grid."
            )
        exact = [r for r in ranked if r[0] == 0]
        # Where snapping leaves under three shapes, the nearest join, so that the blocks' form still varies.
        near = [r for r in ranked if r[0] <= NEAR][:MAX_SHAPES]
        return self._choose([(h, w) for _, h, w in (exact if len(exact) >= 3 else near)])

    def _choose(self, sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return at most `MAX_SHAPES` of the sizes that fit the ranges."""
        return sizes[:MAX_SHAPES]

    def _fitting(self, sizes: list[tuple[int, int]], count: int) -> tuple[MaskShape, ...]:
        """Return the shapes with `count` blocks that leave enough patches visible."""
        shapes = []
        for height, width in sizes:
            left = self._visible_percentile(height, width, count)
            if left >= min_visible(self.grid[0] * self.grid[1]):
                shapes.append(MaskShape(height, width, count, min(left, self.most)))
        return tuple(shapes)

    def _visible_percentile(self, height: int, width: int, count: int) -> int:
        """Return the 5th percentile of the number of visible patches, over 2,000 placements drawn with a fixed key."""
        shape = MaskShape(height, width, count, 0)
        # On the host even where networks are made without storage: the table is needed before there is a device.
        position = torch.arange(2000, device="cpu")
        corners = self._corners(hash_int(0, height, width, count), position, 1, shape)
        # A table may be made inside a step (local crops): without the step's autocast, as masks are drawn.
        with torch.autocast("cpu", enabled=False):
            hidden = self._covered(corners, shape).clamp_(max=1).sum(dim=-1).flatten()
        return self.grid[0] * self.grid[1] - int(hidden.sort(descending=True).values[100])

    def _corners(self, key: int, position: Tensor, candidates: int, shape: MaskShape) -> Tensor:
        """Draw corners (2, B, candidates, T) in patches, rows and columns, uniform over all places on the grid."""
        u = uniform(key, position, candidates * shape.blocks * 2).reshape(len(position), candidates, shape.blocks, 2)
        places = [(g - size) // self.cell + 1 for g, size in zip(self.grid, (shape.height, shape.width), strict=True)]
        return torch.stack([(u[..., i] * n).long().clamp_(max=n - 1).mul_(self.cell) for i, n in enumerate(places)])

    def _covered(self, corners: Tensor, shape: MaskShape) -> Tensor:
        """Return how many blocks lie on each patch: (..., N) float32 for corners (2, ..., T)."""
        sides = zip(corners, self.grid, (shape.height, shape.width), strict=True)
        inside_y, inside_x = (F.embedding(corner, _inside(n, size, corner.device)) for corner, n, size in sides)
        return (inside_y.transpose(-1, -2) @ inside_x).flatten(-2)

    def _place(self, shape: MaskShape, counters: Counters) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the blocks: their corners in patches, each (B, T), and the context (B, K) that is kept of the rest."""
        key = hash_int(self.seed, counters.epoch, Stream.BLOCK_PLACE)
        corners = self._corners(key, counters.position, _CANDIDATES, shape)
        # One that always fits, for the images that no other does (about 6 in a million): all blocks at one place.
        corners = torch.cat([corners, corners[:, :, :1, :1].expand(-1, -1, 1, shape.blocks)], dim=2)
        covered = self._covered(corners, shape)
        fits = covered.clamp(max=1).sum(dim=2) <= covered.shape[2] - shape.visible
        row, first = torch.arange(len(fits), device=fits.device), first_true(fits)
        context = self._keep(covered[row, first] == 0, shape.visible, counters)
        top, left = corners[:, row, first]
        return top, left, context


def _inside(length: int, size: int, device: torch.device) -> Tensor:
    """Return which places of an axis a block of `size` covers from each corner: (corners, places) float32, 1 or 0."""
    place = torch.arange(length, device=device)
    offset = place - place[:, None]
    return ((offset >= 0) & (offset < size)).float()


def _outside(value: float, bounds: tuple[float, float]) -> float:
    """Return how far a value lies outside a range, in log units."""
    return max(0.0, math.log(bounds[0] / value), math.log(value / bounds[1]))
