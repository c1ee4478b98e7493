"""2-D feature pyramid over three depths of the encoder (FPN, arXiv:1612.03144), for dense tasks."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hjepa_pl.functional.tokens import cell_patches, gather_tokens
from hjepa_pl.models.config import PyramidConfig
from hjepa_pl.models.levels import LevelConfig

STRIDES = (1, 2, 4)
"""Strides of the maps in patches. With a pyramid, the cells of token levels must be among them."""


def pyramid_blocks(depth: int) -> tuple[int, int, Literal["last"]]:
    """Return the encoder depths of the maps at strides p, 2p and 4p: thirds of at least 3 blocks (12: 4, 8, last)."""
    return round(depth / 3), round(2 * depth / 3), "last"


def finest_level(levels: Sequence[LevelConfig]) -> int:
    """Return the index of the level whose predictions fill hidden patches: the smallest cell, then the deepest."""
    return min(range(len(levels)), key=lambda i: (int(levels[i].cell), -_depth(levels[i])))


def _nearest_level(levels: Sequence[LevelConfig], stride: int) -> int:
    """Return the index of the level whose cell is nearest to a stride; ties go to the finer, then the deepest."""
    cells = [int(level.cell) for level in levels]
    ratio = [max(cell, stride) // min(cell, stride) for cell in cells]
    return min(range(len(levels)), key=lambda i: (ratio[i], cells[i], -_depth(levels[i])))


def _depth(level: LevelConfig) -> float:
    return float("inf") if level.block == "last" else level.block


class FeaturePyramid(nn.Module):
    """Maps at strides p, 2p and 4p from the encoder's tokens (FPN, arXiv:1612.03144, section 3).

    Each depth's normed tokens pass a linear layer (the lateral connection); those for 2p and 4p are averaged to their
    grid. From the coarsest on, each map is upsampled and fused with the next finer one, then smoothed by a depthwise
    3 x 3 and a pointwise convolution. As in the paper there is no non-linearity; the 3 x 3 convolution is separable, at
    an eighth of the compute, and nothing depends on the other images of a batch.

    In training the context encoder returns visible patches only. Hidden patches are filled with the predictor's outputs
    after a linear layer (their mean where target blocks overlap), all others with a learned vector.

    Args:
        config: Fusion and width.
        embed_dim: Width D of the encoder.
        cell: Height and width in patches of the cells whose predictions fill hidden patches.

    Example:
        >>> from hjepa_pl.models import EncoderConfig, VisionEncoder
        >>> encoder = VisionEncoder(EncoderConfig(size="tiny", img_size=32, patch_size=4), inner=(4, 8))
        >>> pyramid = FeaturePyramid(PyramidConfig(dim=64), encoder.embed_dim)
        >>> tokens = encoder(torch.randn(2, 3, 32, 32), blocks=(4, 8, "last"))
        >>> [tuple(x.shape) for x in pyramid(list(tokens.values()), encoder.grid)]
        [(2, 64, 8, 8), (2, 64, 4, 4), (2, 64, 2, 2)]
    """

    def __init__(self, config: PyramidConfig, embed_dim: int, cell: int = 1) -> None:
        super().__init__()
        self.cell = cell
        self.dim = dim = config.dim or embed_dim
        self.laterals = nn.ModuleList(nn.Linear(embed_dim, dim) for _ in STRIDES)
        self.fill = nn.Linear(embed_dim, dim)
        self.absent = nn.Parameter(torch.zeros(dim))
        merges = len(STRIDES) - 1 if config.fusion == "concat" else 0
        self.merges = nn.ModuleList(nn.Conv2d(2 * dim, dim, 1) for _ in range(merges))
        self.smooths = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False), nn.Conv2d(dim, dim, 1))
            for _ in STRIDES
        )
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)  # gain of a linear network
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Sequence[Tensor],
        grid: tuple[int, int],
        index: Tensor | None = None,
        predictions: Tensor | None = None,
        cells: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return three maps (B, dim, ceil(H / s), ceil(W / s)) for s = 1, 2, 4.

        Args:
            tokens: Normed tokens of the three depths, shallowest first, each (B, K, D).
            grid: Rows H and columns W of patches.
            index: (B, K) int64 patch indices of the tokens; None if they are the whole grid in raster order.
            predictions: (B, Q, D) of hidden cells; required with `index`.
            cells: (B, Q) int64 indices of these cells on their own grid.
        """
        laterals = [lateral(x) for lateral, x in zip(self.laterals, tokens, strict=True)]
        if index is not None:
            assert predictions is not None
            assert cells is not None
            laterals = self._scatter(laterals, index, self.fill(predictions), cells, grid)
        maps = [x.transpose(1, 2).unflatten(2, grid) for x in laterals]
        # With ceil_mode, windows beyond the border of an odd grid average only the patches inside.
        maps = [F.avg_pool2d(x, s, ceil_mode=True) if s > 1 else x for x, s in zip(maps, STRIDES, strict=True)]
        for finer in range(len(maps) - 2, -1, -1):
            maps[finer] = self._merge(finer, maps[finer], maps[finer + 1])
        return tuple(smooth(x) for smooth, x in zip(self.smooths, maps, strict=True))

    def _merge(self, number: int, lateral: Tensor, coarser: Tensor) -> Tensor:
        upsampled = F.interpolate(coarser, size=lateral.shape[-2:], mode="nearest")
        if len(self.merges):
            return self.merges[number](torch.cat([lateral, upsampled], dim=1))
        return lateral + upsampled

    def _scatter(
        self, laterals: list[Tensor], index: Tensor, fill: Tensor, cells: Tensor, grid: tuple[int, int]
    ) -> list[Tensor]:
        """Scatter each depth's tokens (B, K, dim) and the fill (B, Q, dim) of the cells (B, Q) to (B, H * W, dim)."""
        batch, patches = len(index), grid[0] * grid[1]
        indices = torch.cat([index, cell_patches(cells, grid, self.cell)], dim=1)
        rows = (indices + patches * torch.arange(batch, device=index.device)[:, None]).flatten()
        fill = fill.repeat_interleave(self.cell**2, dim=1)
        count = fill.new_zeros(batch * patches).index_add(0, rows, fill.new_ones(1).expand(len(rows)))[:, None]
        scale, absent = 1.0 / count.clamp(min=1), (count == 0) * self.absent.to(fill.dtype)
        maps = []
        for lateral in laterals:
            values = torch.cat([lateral, fill], dim=1).flatten(0, 1)
            total = values.new_zeros(batch * patches, self.dim).index_add(0, rows, values)
            maps.append((total * scale + absent).unflatten(0, (batch, patches)))
        return maps


class PyramidHeads(nn.Module):
    """Linear heads that regress the token levels' targets from the maps of a pyramid; training only.

    A level is regressed from the map whose stride is its cell. A map whose stride no level has regresses the level with
    the nearest cell, resized to that level's grid: without a loss its smoothing weights would stay random.

    Args:
        levels: The token levels; their cells are among `STRIDES`.
        grid: Rows and columns of patches.
        dim: Width of the maps.
        embed_dim: Width D of the targets.
    """

    def __init__(self, levels: Sequence[LevelConfig], grid: tuple[int, int], dim: int, embed_dim: int) -> None:
        super().__init__()
        cells = [int(level.cell) for level in levels]
        self.grids = [(grid[0] // cell, grid[1] // cell) for cell in cells]
        self.reads = [(i, STRIDES.index(cell)) for i, cell in enumerate(cells)]
        for number, stride in enumerate(STRIDES):
            if stride not in cells:
                self.reads.append((_nearest_level(levels, stride), number))
        heads = [nn.Linear(dim, embed_dim) for _ in self.reads]
        for head in heads:  # as the predictor's heads
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(heads)

    def forward(self, maps: Sequence[Tensor], targets: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        """Regress the hidden cells.

        Args:
            maps: The pyramid's maps.
            targets: (B, T, M) indices of the hidden cells of each token level.

        Returns:
            For each head the index of its level and its output (B, T * M, D).
        """
        outputs = []
        for head, (level, number) in zip(self.heads, self.reads, strict=True):
            x = _resize(maps[number], self.grids[level]).flatten(2).transpose(1, 2)
            outputs.append((level, head(gather_tokens(x, targets[level].flatten(1)))))
        return outputs


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map (B, dim, H, W): averaged to a coarser grid, repeated to a finer one."""
    if x.shape[-2] > size[0] or x.shape[-1] > size[1]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size, mode="nearest") if x.shape[-2:] != size else x
