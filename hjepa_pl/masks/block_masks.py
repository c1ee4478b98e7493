"""Target blocks of one size in a step: the table of sizes, the positions, and the visible context."""

import math
from typing import ClassVar, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.functional.choice import LATER, scores, smallest, some_of
from hjepa_pl.functional.counters import Stream, hash_int, uniform
from hjepa_pl.masks.base import MaskGenerator, MaskShape, min_visible
from hjepa_pl.masks.config import MaskConfig
from hjepa_pl.masks.sizes import MAX_SHAPES, Size, block_sizes, has_exact
from hjepa_pl.types import ConfigError, Counters
from hjepa_pl.utils.wording import as_typed

_MOST_BLOCKS = 8
"""Maximum of target blocks per image, with num_targets auto."""
_CANDIDATES = 4
"""Placements drawn per image; the first that leaves enough visible is used."""
_JOINT_CANDIDATES = 3
"""The same with joint targets, where the nearest is used if none fits."""
_VISIBLE = (0.3, 0.4)
"""Fraction of the patches that is visible by default, if the grid allows it. I-JEPA has about 0.3."""
_DROPPED = 0.05
"""Fraction of the patches that may be dropped at random before one more block is hidden."""
COVERED = (0.3, 0.7)
"""Joint targets: quantiles of the number of cells that a placement covers. The lower is the number of predicted cells,
the higher the maximum of hidden ones; covered cells in between are neither seen nor predicted."""


class Placed(NamedTuple):
    """The blocks of a batch."""

    top: Tensor
    """(B, T) int64, in patches."""
    left: Tensor
    """(B, T)."""
    covered: Tensor
    """(B, G) bool: the whole cells that they cover."""
    fits: Tensor
    """(B, 1) bool: True if they leave as many visible patches as the step needs."""


class BlockMasks(MaskGenerator):
    """Base class of multi-block and hierarchical masks: hidden blocks, and the context that they leave.

    Departures from the public I-JEPA code: corners reach the last row and column, scale and aspect are independent,
    the context block is the whole grid, the sizes come from a table of a few shapes, and each shape has a fixed number
    of visible patches (with one pass per block about the 5th percentile; the few images below it are drawn again). If
    all targets are predicted in one pass, each cell that the blocks cover is predicted once, and the number of these
    cells is fixed too: surplus cells are dropped at random, neither seen nor predicted.
    """

    keys: ClassVar[tuple[str, ...]] = ("num_targets", "target_scale", "aspect_ratio", "max_visible")

    default_scales: ClassVar[tuple[tuple[float, float], ...]]
    """Area of a block as a fraction of the grid, by default: the first range that holds a block of whole cells, or the
    last."""
    prefers_several: ClassVar[bool] = False
    """True if shapes with one block are left out where others have several."""

    def __init__(
        self, config: MaskConfig, grid: tuple[int, int], cells: tuple[int, ...], seed: int, joint: bool = True
    ) -> None:
        """Make the table of shapes.

        Raises:
            ConfigError: If a cell does not divide the grid, or every shape leaves too few visible patches.
        """
        super().__init__(config, grid, cells, seed, joint)
        self.aspect = config.aspect_ratio
        scales = (s for s in self.default_scales if has_exact(grid, self.cell, s, self.aspect))
        self.scale = config.target_scale or next(scales, self.default_scales[-1])
        self.patches = grid[0] * grid[1]
        # A cap of the config is rounded; the default one is exact, unless the grid is too small for it.
        self.max_visible = max(int(_VISIBLE[1] * self.patches), min_visible(self.patches))
        if config.max_visible is not None:
            self.max_visible = round(config.max_visible * self.patches)
        if self.max_visible < min_visible(self.patches):
            smallest_cap = math.ceil(100 * min_visible(self.patches) / self.patches) / 100
            raise ConfigError(
                f"invalid `masks.max_visible={as_typed(config.max_visible)}`: leaves {self.max_visible} of "
                f"{self.patches} patches; use {smallest_cap} or more."
            )
        sizes = self._choose(block_sizes(grid, self.cell, self.scale, self.aspect))
        count = config.num_targets if isinstance(config.num_targets, int) else None
        self.shapes = self._possible_shapes(sizes, count)
        if not self.shapes:
            self._reject(sizes, count)
        if count is not None:
            self._check_cap(config)

    def _reject(self, sizes: list[Size], num_targets: int | None) -> NoReturn:
        """Reject blocks that leave too few visible patches, with a number of blocks that does not."""
        too_few = f"fewer than {min_visible(self.patches)}"
        height, width = self.grid
        for count in range((num_targets or 1) - 1, 0, -1):
            if self._possible_shapes(sizes, count):
                raise ConfigError(
                    f"invalid `masks.num_targets={num_targets}`: leaves {too_few} of the {height} x {width} patches "
                    f"visible; use {count}."
                )
        raise ConfigError(
            f"invalid `masks.target_scale={as_typed(self.scale)}`: leaves {too_few} patches of the {height} x {width} "
            f"grid visible, in cells of {self.cell}; use smaller cells, a smaller encoder.patch_size or a larger "
            "encoder.img_size."
        )

    def _check_cap(self, config: MaskConfig) -> None:
        """Reject a cap on the visible patches above what every shape leaves."""
        reached = min(self.max_visible, int(_VISIBLE[1] * self.patches))
        if config.max_visible is not None and all(shape.visible < reached for shape in self.shapes):
            left = max(shape.visible for shape in self.shapes) / self.patches
            raise ConfigError(
                f"invalid `masks.max_visible={as_typed(config.max_visible)}`: has no effect, as the blocks leave at "
                f"most {left:.2f} visible; lower or remove it."
            )

    def _choose(self, sizes: list[Size]) -> list[Size]:
        """Return at most `MAX_SHAPES` of the sizes that fit the ranges."""
        return sizes[:MAX_SHAPES]

    def _possible_shapes(self, sizes: list[Size], count: int | None) -> tuple[MaskShape, ...]:
        """Return the shapes that leave enough patches visible, with `count` blocks, or for None with as many as fit."""
        shapes = [shape for size in sizes if (shape := self._shape(*size, count)) is not None]
        several = [shape for shape in shapes if shape.blocks > 1] if self.prefers_several or not self.joint else []
        return tuple(several or shapes)

    def _shape(self, height: int, width: int, count: int | None) -> MaskShape | None:
        """Return the shape with `count` blocks or, for None, the fewest that leave no more visible than the cap.

        If that many leave too few, there is one block fewer, and visible patches beyond the cap are dropped at random.
        None if even one block leaves too few.
        """
        best = None
        fewest = min_visible(self.patches)
        if count is None:
            fewest = max(fewest, min(self.max_visible, math.ceil(_VISIBLE[0] * self.patches)))
        for blocks in range(1, _MOST_BLOCKS + 1) if count is None else (count,):
            low, high = self._hidden(height, width, blocks)
            left = self.patches - high * self.cell**2
            if left < fewest:
                break
            visible = min(left, self.max_visible)
            best = MaskShape(height, width, blocks, visible, predicted=(low,) if self.joint else ())
            if left <= self.max_visible + _DROPPED * self.patches:
                break
        return best

    def _hidden(self, height: int, width: int, count: int) -> tuple[int, int]:
        """Return the number of predicted whole cells, and the maximum of hidden ones.

        Both are quantiles over 2,000 placements drawn with a fixed key.
        """
        shape = MaskShape(height, width, count, 0)
        # On the CPU, also under a meta device: the table is needed before there is a device.
        position = torch.arange(2000, device="cpu")
        corners = self._corners(hash_int(0, height, width, count), position, 1, shape)
        # A table may be made inside a step (local crops), under its autocast.
        with torch.autocast("cpu", enabled=False):
            hidden = self._covered(corners, (height, width), self.cell).clamp_(max=1).sum(dim=-1).flatten()
        ordered = hidden.sort().values
        low, high = COVERED if self.joint else (0.0, 0.95)
        return int(ordered[int(low * 2000)]), int(ordered[int(high * 2000) - 1])

    def _corners(self, key: int, position: Tensor, candidates: int, shape: MaskShape) -> Tensor:
        """Draw corners (2, B, candidates, T) in patches, row and column, uniform over all positions on the grid."""
        u = uniform(key, position, candidates * shape.blocks * 2).reshape(len(position), candidates, shape.blocks, 2)
        positions = [
            (g - size) // self.cell + 1 for g, size in zip(self.grid, (shape.height, shape.width), strict=True)
        ]
        return torch.stack([(u[..., i] * n).long().clamp_(max=n - 1).mul_(self.cell) for i, n in enumerate(positions)])

    def _covered(self, corners: Tensor, size: Size, cell: int) -> Tensor:
        """Return the number of blocks on each cell: (..., G) float32 for corners (2, ..., T); blocks of whole cells."""
        axes = zip(corners, self.grid, size, strict=True)
        inside_y, inside_x = (
            F.embedding(corner, _inside(n, length, cell, corner.device)) for corner, n, length in axes
        )
        return (inside_y.transpose(-1, -2) @ inside_x).flatten(-2)

    def _place(self, shape: MaskShape, counters: Counters) -> Placed:
        """Draw the blocks: the first candidate that fits, or the nearest to it."""
        key = hash_int(self.seed, counters.epoch, Stream.BLOCK_PLACE)
        candidates = _JOINT_CANDIDATES if self.joint else _CANDIDATES
        corners = self._corners(key, counters.position, candidates, shape)
        if not self.joint:
            # A last candidate that always fits, needed by about 6 images in a million: all blocks at one corner.
            corners = torch.cat([corners, corners[:, :, :1, :1].expand(-1, -1, 1, shape.blocks)], dim=2)
        covered = self._covered(corners, (shape.height, shape.width), self.cell).clamp_(max=1)
        number, limit = covered.sum(dim=2), (self.patches - shape.visible) // self.cell**2
        off = (number - limit).clamp_(min=0)
        if self.joint:
            off = off.add_((shape.predicted[-1] - number).clamp_(min=0))
        # The candidate's index is part of the compared number: no two are equal, so that every device picks the same.
        candidates = off.shape[1]
        chosen = off.mul_(candidates).add_(torch.arange(candidates, device=off.device)).argmin(dim=1)
        row = torch.arange(len(chosen), device=chosen.device)
        top, left = corners[:, row, chosen]
        return Placed(top, left, covered[row, chosen] > 0, number[row, chosen, None] <= limit)

    def _scores(self, counters: Counters) -> Tensor:
        """Draw the order in which patches are dropped, (B, N)."""
        return scores(hash_int(self.seed, counters.epoch, Stream.KEEP), counters.position, self.patches)

    def _divide(self, shape: MaskShape, placed: Placed, counters: Counters) -> tuple[Tensor, Tensor]:
        """Return the whole cells that are predicted (B, U), and the context (B, K), which contains none of them.

        Both have the smallest scores: of cells of the blocks, then of others if these are too few; of patches outside.
        """
        score, step = self._scores(counters), self.cell
        if step == 1:
            of_cells = score.add(~placed.covered, alpha=LATER)
        else:
            # A cell has the score of its upper left patch, with its own index.
            of_cells = some_of(score.unflatten(1, self.grid)[:, ::step, ::step].flatten(1), self.patches)
            of_cells.add_(~placed.covered, alpha=LATER)
        predicted = smallest(of_cells, shape.predicted[-1])
        # Blocks that cover too much hide the predicted cells only.
        hidden = (placed.covered & placed.fits).scatter_(1, predicted, True)
        return predicted, self._context(hidden, shape, score)

    def _context(self, hidden: Tensor, shape: MaskShape, score: Tensor) -> Tensor:
        """Return visible patches (B, K) outside the hidden cells (B, G), in no order.

        Surplus patches are dropped at random, so that no corner of the image is seen less often (I-JEPA truncates a
        raster-ordered list, which drops the lower right). Overwrites `score`.
        """
        height, width = (length // self.cell for length in self.grid)
        of_cells = score.unflatten(1, (height, self.cell, width, self.cell))
        of_cells.add_(hidden.unflatten(1, (height, 1, width, 1)), alpha=LATER)
        return smallest(score, shape.visible)

    def _split(self, cells: Tensor, whole: int, cell: int) -> Tensor:
        """Return the cells of size `cell` within cells (B, U) of size `whole`: (B, U * (whole / cell)^2)."""
        if whole == cell:
            return cells
        top, left = (torch.arange(0, length, whole, device=cells.device) for length in self.grid)
        top, left = top[:, None].expand(-1, len(left)), left.expand(len(top), -1)
        table = self._cells_of(cell, top.flatten(), left.flatten(), (whole, whole))
        return F.embedding(cells, table).flatten(1)


def _inside(length: int, size: int, cell: int, device: torch.device) -> Tensor:
    """Return the cells of an axis that a block of `size` covers from each corner: (corners, cells) float32, 1 or 0."""
    offset = torch.arange(0, length, cell, device=device) - torch.arange(length, device=device)[:, None]
    return ((offset >= 0) & (offset < size)).float()
