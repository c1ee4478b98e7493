"""A timm vision transformer that computes on the visible tokens only."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hjepa_pl.functional.tokens import gather_tokens, patchify, sincos_positions
from hjepa_pl.models.config import EncoderConfig
from hjepa_pl.models.pretrained import load_pretrained
from hjepa_pl.models.resample import resample_positions
from hjepa_pl.models.rope import RotaryAttention, rotations
from hjepa_pl.models.run_blocks import run_blocks
from hjepa_pl.models.timm_vit import build_timm
from hjepa_pl.types import ConfigError

Block = int | Literal["last"]


class VisionEncoder(nn.Module):
    """Vision transformer over kept patches; pixels are gathered before the patch embedding.

    With all patches kept it equals timm's `forward_features` of `vit`, whose state dict is the one to export.
    """

    vit: VisionTransformer | Eva
    """timm's model; its state dict is the one to export."""

    def __init__(self, config: EncoderConfig, inner: Sequence[int] = (), affine: Sequence[int] = ()) -> None:
        """Make an encoder with timm's initialisation, or the weights that `config.pretrained` names.

        Args:
            config: The architecture.
            inner: Blocks before the last whose output is wanted; each gets a layer norm of its own, outside `vit`.
            affine: Those of `inner` whose norm has parameters (they only learn where the predictor reads them).

        Raises:
            ConfigError: As `build_timm` and `load_pretrained`.
        """
        super().__init__()
        self.config = config
        self.vit = build_timm(config)
        blocks: Any = self.vit.blocks
        for block in blocks:
            if RotaryAttention.takes(block.attn):
                block.attn = RotaryAttention(block.attn)
        self.grid: tuple[int, int] = tuple(self.vit.patch_embed.grid_size)
        self.patch_size: tuple[int, int] = tuple(self.vit.patch_embed.patch_size)
        self.embed_dim: int = self.vit.embed_dim
        self.depth = len(self.vit.blocks)
        self.inner_norms = nn.ModuleDict(
            {str(b): nn.LayerNorm(self.embed_dim, elementwise_affine=b in affine) for b in sorted(set(inner))}
        )
        if config.position == "sincos":
            self._fix_positions()
        load_pretrained(self.vit, config)
        self._turns: dict[tuple[Any, ...], Tensor] = {}

    def _fix_positions(self) -> None:
        """Fill the position table with sines and cosines, for good."""
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
        """Encode images, or their kept patches.

        Args:
            images: (B, C, H, W), square or not. At another size than in training a table of positions, learned or
                sine-cosine, is stretched over the new grid as by timm's `resample_abs_pos_embed` (a sine-cosine table
                is not continued beyond its ends); rotary angles are those of the new grid, in steps of a patch.
            keep: (B, K) indices of the patches to compute on; None is all of them.
            blocks: Depths to return, counted from 1, or 'last'. No block beyond the deepest is computed.

        Returns:
            Patch tokens (B, K or N, D) for each depth: after the final norm for 'last', after their own norm for the
            others. Prefix tokens are dropped.
        """
        x, rope = self._embed(images, keep)
        prefix = self.vit.num_prefix_tokens
        last = self.depth if "last" in blocks else max(b for b in blocks if b != "last")
        every = self.config.checkpoint_every if self.config.grad_checkpointing and self.training else 0
        x, inner = run_blocks(self.vit.blocks[:last], x, rope, self.config.attention, every, blocks)
        found: dict[Block, Tensor] = {b: self.inner_norms[str(b)](tokens[:, prefix:]) for b, tokens in inner.items()}
        if "last" in blocks:
            found["last"] = self.vit.norm(x)[:, prefix:]
        return found

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Return rows and columns of the patches of images (B, C, H, W)."""
        return images.shape[-2] // self.patch_size[0], images.shape[-1] // self.patch_size[1]

    def _embed(self, images: Tensor, keep: Tensor | None) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """Return the tokens that enter the first block, prefix included, and what each block takes beside them."""
        vit, (p, q) = self.vit, self.patch_size
        if images.shape[-2] % p or images.shape[-1] % q or images.shape[1] != self.config.in_chans:
            raise ConfigError(
                f"images of shape {tuple(images.shape[1:])} do not fit the encoder, which takes {self.config.in_chans} "
                f"channels and sides that are multiples of {p}."
            )
        grid = self.grid_of(images)
        pixels = patchify(images, self.patch_size)
        if keep is not None:
            pixels = gather_tokens(pixels, keep)
        conv = vit.patch_embed.proj
        x = vit.patch_embed.norm(nn.functional.linear(pixels, conv.weight.flatten(1), conv.bias))
        x = x.to(conv.weight.dtype)  # under autocast the residual stream stays in 32 bits
        position = self._positions(grid)
        if position is not None:
            x = x + (position if keep is None else gather_tokens(position.expand(len(x), -1, -1), keep))
        x = torch.cat([*self._prefix(len(x)), x], dim=1)
        return vit.norm_pre(x), self._angles(grid, keep)

    def _positions(self, grid: tuple[int, int]) -> Tensor | None:
        """Return the absolute positions (1, N, D) of the patches on `grid`, or None without any."""
        table = self.vit.pos_embed
        if table is None:
            return None
        prefix = table.shape[1] - self.grid[0] * self.grid[1]
        if grid != self.grid:
            return resample_positions(table[:, prefix:], self.grid, grid)
        return table[:, prefix:]

    def _prefix(self, batch: int) -> list[Tensor]:
        """Return the prefix tokens, each (batch, count, D), with their positions where the table holds any."""
        vit = self.vit
        tokens: list[Tensor] = [t for t in (vit.cls_token, vit.reg_token) if t is not None]
        if not tokens:
            return []
        x = torch.cat(tokens, dim=1)
        if vit.pos_embed is not None:
            own = vit.pos_embed.shape[1] - self.grid[0] * self.grid[1]
            if own:
                x = x + vit.pos_embed[:, :own]
        return [x.expand(batch, -1, -1)]

    def _angles(self, grid: tuple[int, int], keep: Tensor | None) -> list[tuple[Tensor, ...]]:
        """Return what each block takes beside its tokens: the rotary positions of the kept patches, or nothing."""
        rope = getattr(self.vit, "rope", None)
        if rope is None:
            return [()] * self.depth
        if not isinstance(self.vit.blocks[0].attn, RotaryAttention):
            table = rope.get_embed(shape=list(grid))  # (N, 2 d)
            kept_table = table if keep is None else gather_tokens(table.expand(len(keep), -1, -1), keep)[:, None]
            return [(kept_table,)] * self.depth
        prefix = self.vit.num_prefix_tokens
        turn = self._rotations(grid)  # (depth or 1, prefix + N, 1, heads or 1, d / 2, 2)
        if keep is None:
            return [(t[None],) for t in turn.expand(self.depth, *turn.shape[1:])]
        place = torch.cat([torch.arange(prefix, device=keep.device).expand(len(keep), -1), keep + prefix], dim=1)
        # One for all blocks where they share it. Mixed ones learn; the gradient of t[place] would be sorted on a GPU.
        kept = [t.index_select(0, place.flatten()).unflatten(0, place.shape) for t in turn]
        return [(t,) for t in kept * (self.depth if len(kept) == 1 else 1)]

    def _rotations(self, grid: tuple[int, int]) -> Tensor:
        """Return the `rotations` of a grid's patches; fixed ones are kept, which timm makes anew on every pass."""
        rope: Any = self.vit.rope
        prefix = self.vit.num_prefix_tokens
        if any(True for _ in rope.parameters()) or getattr(rope, "aug_active", False):
            return rotations(rope.get_embed(shape=list(grid)), prefix)
        key = (grid, *((b.device, b.dtype) for b in rope.buffers()))
        if key not in self._turns:
            with torch.inference_mode(False), torch.no_grad():  # validation may ask first, and training go on with it
                self._turns[key] = rotations(rope.get_embed(shape=list(grid)), prefix)
        return self._turns[key]
