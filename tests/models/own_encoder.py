"""An encoder family outside the package: a convolutional stem and PyTorch's own transformer layers."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from hjepa_pl.models import Encoder, EncoderConfig


class ConvStemEncoder(Encoder):
    """Two strided convolutions within each patch, then `nn.TransformerEncoderLayer`s."""

    keys: ClassVar[frozenset[str]] = frozenset({"patch_size", "embed_dim", "depth"})

    def __init__(
        self, config: EncoderConfig, inner: Sequence[int] = (), affine: Sequence[int] = (), heads: int = 2
    ) -> None:
        super().__init__(config)
        assert isinstance(config.img_size, int)
        assert config.embed_dim is not None
        assert config.depth is not None
        patch = config.patch_size or 4
        self.patch_size, self.embed_dim, self.depth = (patch, patch), config.embed_dim, config.depth
        self.grid = (config.img_size // patch, config.img_size // patch)
        half, width = patch // 2, config.embed_dim
        self.stem = nn.Sequential(
            nn.Conv2d(config.in_chans, width, half, stride=half), nn.GELU(), nn.Conv2d(width, width, 2, stride=2)
        )
        self.position = nn.Parameter(0.02 * torch.randn(1, self.grid[0] * self.grid[1], width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, batch_first=True, norm_first=True)
            for _ in range(self.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.inner_norms = self.inner_norms_of(inner, affine)

    def forward(self, images: Tensor, keep: Tensor | None = None, blocks: Sequence = ("last",)) -> dict:
        x = self.stem(images).flatten(2).transpose(1, 2) + self.position  # the stem does not cross patches
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        outputs = {}
        for number, block in enumerate(self.blocks, start=1):
            x = block(x)
            if number in blocks:
                outputs[number] = self.inner_norms[str(number)](x)
        return outputs | {"last": self.norm(x)}
