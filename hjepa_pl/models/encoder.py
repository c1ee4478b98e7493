"""Vision transformer that computes on the visible tokens only."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from hjepa_pl.functional.precision import without_autocast
from hjepa_pl.functional.tokens import gather_tokens, patchify, sincos_positions
from hjepa_pl.models.base import Block, Encoder
from hjepa_pl.models.blocks import run_blocks
from hjepa_pl.models.config import EncoderConfig
from hjepa_pl.models.pretrained import load_pretrained
from hjepa_pl.models.rope import RotaryAttention, rotations
from hjepa_pl.models.timm_vit import build_timm
from hjepa_pl.types import ConfigError


class VisionEncoder(Encoder):
    """timm's vision transformer over kept patches; pixels are gathered before the patch embedding.

    With all patches kept it equals timm's `forward_features` of `vit`.

    Args:
        config: The architecture, and the weights to start from (`pretrained`).
        inner: Blocks before the last whose output is read. Each gets a layer norm of its own, outside `vit`.
        affine: Those of `inner` whose norm has parameters (they only learn where the predictor reads them).

    Attributes:
        vit: The timm model; its state dict is the one to export.

    Raises:
        ConfigError: As `build_timm` and `load_pretrained`.

    Example:
        >>> config = EncoderConfig(size="tiny", img_size=32, patch_size=4, position="rope")
        >>> encoder = VisionEncoder(config)
        >>> images, visible = torch.randn(2, 3, 32, 32), torch.arange(20).expand(2, -1)
        >>> encoder(images)["last"].shape
        torch.Size([2, 64, 192])
        >>> encoder(images, visible)["last"].shape
        torch.Size([2, 20, 192])
    """

    keys: ClassVar[frozenset[str]] = frozenset(field.name for field in dataclasses.fields(EncoderConfig))
    vit: VisionTransformer | Eva

    def __init__(self, config: EncoderConfig, inner: Sequence[int] = (), affine: Sequence[int] = ()) -> None:
        super().__init__(config)
        self.vit = build_timm(config)
        blocks: Any = self.vit.blocks
        for block in blocks:
            if RotaryAttention.replaces(block.attn):
                block.attn = RotaryAttention(block.attn)
        self.grid = tuple(self.vit.patch_embed.grid_size)
        self.patch_size = tuple(self.vit.patch_embed.patch_size)
        self.embed_dim = self.vit.embed_dim
        self.depth = len(self.vit.blocks)
        self.inner_norms = self.inner_norms_of(inner, affine)
        if config.position == "sincos":
            self._fix_positions()
        load_pretrained(self.vit, config)
        self._rotation_cache: dict[tuple[Any, ...], Tensor] = {}

    def _fix_positions(self) -> None:
        """Fill the position table with sines and cosines, and freeze it."""
        table = sincos_positions(self.grid, self.embed_dim)
        position = self.vit.pos_embed
        assert position is not None
        prefix = position.shape[1] - len(table)
        with torch.no_grad():
            position.copy_(torch.cat([table.new_zeros(prefix, self.embed_dim), table])[None])
        position.requires_grad_(False)

    def forward(
        self, images: Tensor, keep: Tensor | None = None, blocks: Sequence[Block] = ("last",)
    ) -> dict[Block, Tensor]:
        """Encode images, or their kept patches (see `Encoder.forward`). No block beyond the deepest is computed.

        At another size than in training a position table, learned or sine-cosine, is resampled to the new grid as by
        timm's `resample_abs_pos_embed`; rotary angles are those of the new grid.
        """
        x, rope = self._embed(images, keep)
        prefix = self.vit.num_prefix_tokens
        last = self.depth if "last" in blocks else max(b for b in blocks if b != "last")
        every = self.config.checkpoint_every if self.config.grad_checkpointing and self.training else 0
        x, inner = run_blocks(self.vit.blocks[:last], x, rope, self.config.attention, every, blocks)
        outputs: dict[Block, Tensor] = {b: self.inner_norms[str(b)](tokens[:, prefix:]) for b, tokens in inner.items()}
        if "last" in blocks:
            outputs["last"] = self.vit.norm(x)[:, prefix:]
        return outputs

    def _embed(self, images: Tensor, keep: Tensor | None) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """Return the input tokens of the first block, prefix included, and the further arguments of each block."""
        vit, (p, q) = self.vit, self.patch_size
        if images.shape[-2] % p or images.shape[-1] % q or images.shape[1] != self.config.in_chans:
            raise ConfigError(
                f"images of shape {tuple(images.shape[1:])} do not fit the encoder: it takes {self.config.in_chans} "
                f"channels, a height that is a multiple of {p} and a width that is a multiple of {q}."
            )
        grid = self.grid_of(images)
        pixels = patchify(images, self.patch_size)
        if keep is not None:
            pixels = gather_tokens(pixels, keep)
        conv = vit.patch_embed.proj
        x = vit.patch_embed.norm(F.linear(pixels, conv.weight.flatten(1), conv.bias))
        x = x.to(conv.weight.dtype)  # under autocast the residual stream stays in 32 bits
        position = self._positions(grid)
        if position is not None:
            x = x + (position if keep is None else gather_tokens(position.expand(len(x), -1, -1), keep))
        x = torch.cat([*self._prefix(x.shape[0]), x], dim=1)
        return vit.norm_pre(x), self._block_rotations(grid, keep)

    def _positions(self, grid: tuple[int, int]) -> Tensor | None:
        """Return the absolute positions (1, N, D) of the patches on `grid`; None without a table."""
        table = self.vit.pos_embed
        if table is None:
            return None
        prefix = table.shape[1] - self.grid[0] * self.grid[1]
        if grid != self.grid:
            return resample_positions(table[:, prefix:], self.grid, grid)
        return table[:, prefix:]

    def _prefix(self, batch: int) -> list[Tensor]:
        """Return the prefix tokens, each (batch, count, D), with their positions where the table has any."""
        vit = self.vit
        tokens: list[Tensor] = [t for t in (vit.cls_token, vit.reg_token) if t is not None]
        if not tokens:
            return []
        x = torch.cat(tokens, dim=1)
        if vit.pos_embed is not None:
            count = vit.pos_embed.shape[1] - self.grid[0] * self.grid[1]
            if count:
                x = x + vit.pos_embed[:, :count]
        return [x.expand(batch, -1, -1)]

    def _block_rotations(self, grid: tuple[int, int], keep: Tensor | None) -> list[tuple[Tensor, ...]]:
        """Return the rotary positions of the kept patches as further arguments of each block; empty without RoPE."""
        rope = getattr(self.vit, "rope", None)
        if rope is None:
            return [()] * self.depth
        if not isinstance(self.vit.blocks[0].attn, RotaryAttention):
            table = rope.get_embed(shape=list(grid))  # (N, 2 d)
            kept_table = table if keep is None else gather_tokens(table.expand(len(keep), -1, -1), keep)[:, None]
            return [(kept_table,)] * self.depth
        prefix = self.vit.num_prefix_tokens
        rotation = self._rotations(grid)  # (depth or 1, prefix + N, 1, heads or 1, d / 2, 2)
        if keep is None:
            return [(r[None],) for r in rotation.expand(self.depth, *rotation.shape[1:])]
        index = torch.cat([torch.arange(prefix, device=keep.device).expand(len(keep), -1), keep + prefix], dim=1)
        # index_select, not rotation[index]: mixed frequencies learn, and on a GPU the latter's backward sorts.
        kept = [r.index_select(0, index.flatten()).unflatten(0, index.shape) for r in rotation]
        return [(r,) for r in kept * (self.depth if len(kept) == 1 else 1)]

    def _rotations(self, grid: tuple[int, int]) -> Tensor:
        """Return the `rotations` of a grid's patches; fixed ones are cached (timm computes them on every pass)."""
        rope: Any = self.vit.rope
        prefix = self.vit.num_prefix_tokens
        if any(True for _ in rope.parameters()) or getattr(rope, "aug_active", False):
            return rotations(rope.get_embed(shape=list(grid)), prefix)
        key = (grid, *((b.device, b.dtype) for b in rope.buffers()))
        if key not in self._rotation_cache:
            with torch.inference_mode(False), torch.no_grad():  # made in a validation, used in training
                self._rotation_cache[key] = rotations(rope.get_embed(shape=list(grid)), prefix)
        return self._rotation_cache[key]


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample positions as timm's `resample_abs_pos_embed`: bicubic, antialiased.

    The filter is separable, so this is two products with small matrices, made at each call. The backward of timm's
    operator is missing on some devices (Apple's GPU: PyTorch pull 169785).

    Args:
        table: (1, H * W, D) in raster order, without prefix tokens.
        old: H and W.
        new: Rows and columns of the new grid.

    Returns:
        (1, rows * columns, D), of the table's dtype.
    """
    with without_autocast(table.device):
        rows, columns = (_resampling_matrix(a, b, table.device) for a, b in zip(old, new, strict=True))
        resampled = torch.einsum("yh,xw,hwd->yxd", rows, columns, table[0].float().unflatten(0, old))
    return resampled.flatten(0, 1)[None].to(table.dtype)


@torch.no_grad()
def _resampling_matrix(old: int, new: int, device: torch.device) -> Tensor:
    """Return the (new, old) matrix that resamples one axis: the filter's response to each unit vector."""
    identity = torch.eye(old, device=device)[None, None]
    return F.interpolate(identity, size=(new, old), mode="bicubic", antialias=True)[0, 0]
