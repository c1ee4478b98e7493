"""Base class of the encoder families."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from hjepa_pl.models.config import EncoderConfig

Block = int | Literal["last"]
"""Depth of an output: after this block, counted from 1, or after the final norm."""


class Encoder(nn.Module):
    """Encodes images, or the visible patches of them, to patch tokens.

    A family subclasses it, makes its layers from an `EncoderConfig` and sets the attributes below. It is registered in
    `ENCODERS`, or selected by its import path: `encoder: {family: my_package.MyEncoder, img_size: 32, ...}`.

    Attributes:
        keys: Keys of the `encoder` config that the family reads. All others are rejected, except those that every
            family reads (`family`, `options`, `img_size`, `in_chans`, `attention`).
        config: The config that the encoder was made from.
        grid: Rows and columns of patches of a training image.
        patch_size: Height and width of a patch, in pixels; `grid` times `patch_size` is `img_size`.
        embed_dim: Width D of the tokens.
        depth: Number of blocks.
    """

    keys: ClassVar[frozenset[str]] = frozenset()
    grid: tuple[int, int]
    patch_size: tuple[int, int]
    embed_dim: int
    depth: int

    def __init__(self, config: EncoderConfig, inner: Sequence[int] = (), affine: Sequence[int] = ()) -> None:
        """Keep the config; subclasses make the layers, then `inner_norms`.

        Args:
            config: The architecture. `config.options` are passed to a subclass as keyword arguments too.
            inner: Blocks before the last whose output is read. Each output has a layer norm of its own.
            affine: Those of `inner` whose norm has parameters (only where the predictor reads them, else they would not
                learn).
        """
        super().__init__()
        self.config = config

    def inner_norms_of(self, inner: Sequence[int], affine: Sequence[int]) -> nn.ModuleDict:
        """Return the layer norms of `inner` blocks, by block number; arguments as of the constructor."""
        return nn.ModuleDict(
            {str(b): nn.LayerNorm(self.embed_dim, elementwise_affine=b in affine) for b in sorted(set(inner))}
        )

    def forward(
        self, images: Tensor, keep: Tensor | None = None, blocks: Sequence[Block] = ("last",)
    ) -> dict[Block, Tensor]:
        """Encode images, or their kept patches.

        Args:
            images: (B, C, H, W); H and W are any multiples of the patch size.
            keep: (B, K) indices of the visible patches; None is all of them. The tokens must not depend on the pixels
                of any other patch.
            blocks: Depths to return.

        Returns:
            Patch tokens (B, K or N, D) of each depth in the order of `keep`, or in raster order: after the final norm
            for 'last', after a norm of their own for other depths. Prefix tokens are dropped.
        """
        raise NotImplementedError

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Return rows and columns of the patches of images (B, C, H, W)."""
        return images.shape[-2] // self.patch_size[0], images.shape[-1] // self.patch_size[1]
