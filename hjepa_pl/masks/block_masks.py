"""Target blocks of one size a step: the table of sizes, the places, and what they leave visible."""

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

_MOST_BLOCKS = 8
"""Most target blocks an image, where the config names no number."""
_CANDIDATES = 4
"""Placements drawn an image; the first that leaves enough visible is taken."""
_JOINT_CANDIDATES = 3
"""The same with joint targets, where the nearest will do if none fits."""
_VISIBLE = (0.3, 0.4)
"""Share of the patches that is visible, where the config does not say and the grid allows it. I-JEPA shows about .3."""
_DROPPED = 0.05
"""Share of the patches that may be dropped at random, sooner than one block more is hidden."""
COVERED = (0.3, 0.7)
"""Joint targets: percentiles of the cells that a placement covers. The lower is what is asked for, the higher what may
be hidden; in between nothing is but cells of the blocks that are not asked for."""


class Placed(NamedTuple):
    """The blocks of a batch."""

    top: Tensor
    """(B, T) int64, in patches."""
    left: Tensor
    """(B, T)."""
    covered: Tensor
    """(B, G) bool: which whole cells they cover."""
    fits: Tensor
    """(B, 1) bool: whether they leave as many visible patches as the step has."""


class BlockMasks(MaskGenerator):
    """What multi-block and hierarchical masks share: the blocks that are hidden, and the context that they leave.

    Departures from the public I-JEPA code: corners reach the last row and column, scale and aspect are independent,
    the context block is the whole grid, the sizes come from a table of a few shapes, and the number of visible patches
    is fixed for each (where every block is a pass of its own about its 5th percentile, the few images below it being
    drawn again). Where all targets are predicted in one pass, each cell that the blocks cover is asked for once, and
    their number is fixed too: surplus cells are dropped at random, neither seen nor asked for.
    """

    default_scales: ClassVar[tuple[tuple[float, float], ...]]
    """Area of a block as a share of the grid, where the config names none: the first that a block of whole cells has,
    or the last."""
    prefers_several: ClassVar[bool] = False
    """Whether shapes with one block are left out where others have several."""

    def __init__(
        self, config: MaskConfig, grid: tuple[int, int], cells: tuple[int, ...], seed: int, joint: bool = True
    ) -> None:
        """Make the table of shapes.

        Raises:
            ConfigError: If a cell does not divide the grid, or every shape leaves too few visible patches.
        """
        super().__init__(grid, cells, seed)
        self.joint = joint
        self.aspect = config.aspect_ratio or (0.75, 1.5)
        scales = (s for s in self.default_scales if has_exact(grid, self.cell, s, self.aspect))
        self.scale = config.target_scale or next(scales, self.default_scales[-1])
        self.patches = grid[0] * grid[1]
        share = _VISIBLE[1] if config.max_visible is None else config.max_visible
        # A cap that is asked for is rounded; the default is kept to, unless the grid is too small for it.
        self.most = max(int(share * self.patches), min_visible(self.patches))
        if config.max_visible is not None:
            self.most = round(share * self.patches)
        if self.most < min_visible(self.patches):
            raise ConfigError(
                f"masks.max_visible {config.max_visible} leaves {self.most} of {self.patches} patches; "
                f"{math.ceil(100 * min_visible(self.patches) / self.patches) / 100} would do."
            )
        sizes = self._choose(block_sizes(grid, self.cell, self.scale, self.aspect))
        asked = config.num_targets if isinstance(config.num_targets, int) else None
        self.shapes = self._fitting(sizes, asked)
        if not self.shapes:
            self._refuse(sizes, asked)
        if asked is not None:
            self._check_cap(config)

    def _refuse(self, sizes: list[Size], asked: int | None) -> NoReturn:
        """Refuse blocks that leave too little, with a number of them that would do."""
        least = f"fewer than {min_visible(self.patches)}"
        rows, columns = self.grid
        for count in range((asked or 1) - 1, 0, -1):
            if self._fitting(sizes, count):
                raise ConfigError(
                    f"masks.num_targets {asked} leaves {least} of the {rows} x {columns} patches visible; "
                    f"{count} would do."
                )
        raise ConfigError(
            f"masks.target_scale {list(self.scale)} on a grid of {rows} x {columns} patches in cells of {self.cell} "
            f"leaves {least} patches visible; take smaller cells, a smaller encoder.patch_size or a larger "
            "encoder.img_size."
        )

    def _check_cap(self, config: MaskConfig) -> None:
        """Refuse a cap on the visible patches that no shape reaches, nor the cap that it stands for."""
        reached = min(self.most, int(_VISIBLE[1] * self.patches))
        if config.max_visible is not None and all(shape.visible < reached for shape in self.shapes):
            left = max(shape.visible for shape in self.shapes) / self.patches
            raise ConfigError(
                f"masks.max_visible {config.max_visible} does nothing: the blocks leave at most {left:.2f} visible; "
                "lower or remove it."
            )

    def _choose(self, sizes: list[Size]) -> list[Size]:
        """Return at most `MAX_SHAPES` of the sizes that fit the ranges."""
        return sizes[:MAX_SHAPES]

    def _fitting(self, sizes: list[Size], count: int | None) -> tuple[MaskShape, ...]:
        """Return the shapes that leave enough patches visible, with `count` blocks or as many as bring them to that."""
        shapes = [shape for size in sizes if (shape := self._fit(*size, count)) is not None]
        several = [shape for shape in shapes if shape.blocks > 1] if self.prefers_several or not self.joint else []
        return tuple(several or shapes)

    def _fit(self, height: int, width: int, count: int | None) -> MaskShape | None:
        """Return the shape with `count` blocks or, for None, the fewest that leave no more visible than the cap.

        Where that many would leave too little, one fewer is taken, and visible patches beyond the cap are dropped at
        random. None where even one leaves too little.
        """
        best = None
        least = min_visible(self.patches)
        if count is None:
            least = max(least, min(self.most, math.ceil(_VISIBLE[0] * self.patches)))
        for blocks in range(1, _MOST_BLOCKS + 1) if count is None else (count,):
            low, high = self._hidden(height, width, blocks)
            left = self.patches - high * self.cell**2
            if left < least:
                break
            visible = min(left, self.most)
            best = MaskShape(height, width, blocks, visible, asked=(low,) if self.joint else ())
            if left <= self.most + _DROPPED * self.patches:
                break
        return best

    def _hidden(self, height: int, width: int, count: int) -> tuple[int, int]:
        """Return how many whole cells are asked for and how many may be hidden.

        Both are percentiles over 2,000 placements drawn with a fixed key.
        """
        shape = MaskShape(height, width, count, 0)
        # On the host even where networks are made without storage: the table is needed before there is a device.
        position = torch.arange(2000, device="cpu")
        corners = self._corners(hash_int(0, height, width, count), position, 1, shape)
        # A table may be made inside a step (local crops): without the step's autocast, as masks are drawn.
        with torch.autocast("cpu", enabled=False):
            hidden = self._covered(corners, (height, width), self.cell).clamp_(max=1).sum(dim=-1).flatten()
        ordered = hidden.sort().values
        low, high = COVERED if self.joint else (0.0, 0.95)
        return int(ordered[int(low * 2000)]), int(ordered[int(high * 2000) - 1])

    def _corners(self, key: int, position: Tensor, candidates: int, shape: MaskShape) -> Tensor:
        """Draw corners (2, B, candidates, T) in patches, rows and columns, uniform over all places on the grid."""
        u = uniform(key, position, candidates * shape.blocks * 2).reshape(len(position), candidates, shape.blocks, 2)
        places = [(g - size) // self.cell + 1 for g, size in zip(self.grid, (shape.height, shape.width), strict=True)]
        return torch.stack([(u[..., i] * n).long().clamp_(max=n - 1).mul_(self.cell) for i, n in enumerate(places)])

    def _covered(self, corners: Tensor, size: Size, cell: int) -> Tensor:
        """Return how many blocks lie on each cell: (..., G) float32 for corners (2, ..., T); blocks of whole cells."""
        sides = zip(corners, self.grid, size, strict=True)
        inside_y, inside_x = (F.embedding(corner, _inside(n, side, cell, corner.device)) for corner, n, side in sides)
        return (inside_y.transpose(-1, -2) @ inside_x).flatten(-2)

    def _place(self, shape: MaskShape, counters: Counters) -> Placed:
        """Draw the blocks: of the candidates the first that fits, or that is nearest to it."""
        key = hash_int(self.seed, counters.epoch, Stream.BLOCK_PLACE)
        candidates = _JOINT_CANDIDATES if self.joint else _CANDIDATES
        corners = self._corners(key, counters.position, candidates, shape)
        if not self.joint:
            # One that always fits, for the images that no other does (about 6 in a million): all blocks at one place.
            corners = torch.cat([corners, corners[:, :, :1, :1].expand(-1, -1, 1, shape.blocks)], dim=2)
        covered = self._covered(corners, (shape.height, shape.width), self.cell).clamp_(max=1)
        number, room = covered.sum(dim=2), (self.patches - shape.visible) // self.cell**2
        off = (number - room).clamp_(min=0)
        if self.joint:
            off = off.add_((shape.asked[-1] - number).clamp_(min=0))
        # Their order is in the number that is compared: no two are equal, so that every device picks the same.
        of = off.shape[1]
        chosen = off.mul_(of).add_(torch.arange(of, device=off.device)).argmin(dim=1)
        row = torch.arange(len(chosen), device=chosen.device)
        top, left = corners[:, row, chosen]
        return Placed(top, left, covered[row, chosen] > 0, number[row, chosen, None] <= room)

    def _scores(self, counters: Counters) -> Tensor:
        """Draw the order in which patches are dropped, (B, N)."""
        return scores(hash_int(self.seed, counters.epoch, Stream.KEEP), counters.position, self.patches)

    def _divide(self, shape: MaskShape, placed: Placed, counters: Counters) -> tuple[Tensor, Tensor]:
        """Return the whole cells that are asked for (B, U), and the context (B, K), which holds none of them.

        Both are of the smallest scores: cells of the blocks, and others where they are too few; then patches outside.
        """
        score, step = self._scores(counters), self.cell
        if step == 1:
            of_cells = score.add(~placed.covered, alpha=LATER)
        else:
            # A cell has the score of its upper left patch, and a place of its own.
            of_cells = some_of(score.unflatten(1, self.grid)[:, ::step, ::step].flatten(1), self.patches)
            of_cells.add_(~placed.covered, alpha=LATER)
        asked = smallest(of_cells, shape.asked[-1])
        # Blocks that hide too much hide no more than is asked for.
        hidden = (placed.covered & placed.fits).scatter_(1, asked, True)
        return asked, self._context(hidden, shape, score)

    def _context(self, hidden: Tensor, shape: MaskShape, score: Tensor) -> Tensor:
        """Return the visible patches (B, K) that are kept, of those outside the hidden cells (B, G), in no order.

        Which are dropped is random, so that no corner of the image is seen less often (I-JEPA cuts a raster-ordered
        list, which drops the lower right). The scores are given up.
        """
        rows, columns = (side // self.cell for side in self.grid)
        of_cells = score.unflatten(1, (rows, self.cell, columns, self.cell))
        of_cells.add_(hidden.unflatten(1, (rows, 1, columns, 1)), alpha=LATER)
        return smallest(score, shape.visible)

    def _split(self, cells: Tensor, whole: int, cell: int) -> Tensor:
        """Return the cells of side `cell` within cells (B, U) of side `whole`: (B, U * (whole / cell)^2)."""
        if whole == cell:
            return cells
        top, left = (torch.arange(0, side, whole, device=cells.device) for side in self.grid)
        top, left = top[:, None].expand(-1, len(left)), left.expand(len(top), -1)
        table = self._cells_of(cell, top.flatten(), left.flatten(), (whole, whole))
        return F.embedding(cells, table).flatten(1)


def _inside(length: int, size: int, cell: int, device: torch.device) -> Tensor:
    """Return which cells of an axis a block of `size` covers from each corner: (corners, cells) float32, 1 or 0."""
    offset = torch.arange(0, length, cell, device=device) - torch.arange(length, device=device)[:, None]
    return ((offset >= 0) & (offset < size)).float()
