"""Last block of the predictor: computes the queries only, with the context as keys and values.

A step of `levels: three` at 32 pixels takes 1.04 times as long without it (docs/benchmarks.md).
"""

from typing import Any

from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn import functional as F

from hjepa_pl.models.attention import attend
from hjepa_pl.models.rope import rotate


class QueryBlock(Block):
    """timm's `Block`, with the same parameters, that returns the tokens from index `first` on."""

    def forward(self, x: Tensor, first: int) -> Tensor:  # type: ignore[override]
        """Map (B, N, D) to (B, N - first, D), equal to those rows of `Block.forward`."""
        out = x[:, first:] + self.ls1(attend_from(self.attn, self.norm1(x), first))
        return out + self.ls2(self.mlp(self.norm2(out)))


class RotaryQueryBlock(EvaBlock):
    """timm's `EvaBlock`, with the same parameters, that returns the tokens from index `first` on."""

    def forward(self, x: Tensor, rope: Tensor, first: int) -> Tensor:  # type: ignore[override]
        """Map (B, N, D) to (B, N - first, D); `rope` as in `RotaryAttention`."""
        update = attend_from(self.attn, self.norm1(x), first, rope[:, :, 0])
        out = x[:, first:] + (update if self.gamma_1 is None else self.gamma_1 * update)
        update = self.mlp(self.norm2(out))
        return out + (update if self.gamma_2 is None else self.gamma_2 * update)


def attend_from(attention: Any, x: Tensor, first: int, rotation: Tensor | None = None) -> Tensor:
    """Attend from the tokens from index `first` on to all tokens.

    Args:
        attention: Layer with `qkv` and `proj` as in timm, without norms of queries and keys.
        x: (B, N, D).
        first: Index of the first token to compute.
        rotation: Rotations of queries and keys (B or 1, N, heads or 1, head_dim / 2, 2), or None.

    Returns:
        (B, N - first, D).
    """
    b, n, d = x.shape
    weights, biases = attention.qkv.weight.split([d, 2 * d]), attention.qkv.bias.split([d, 2 * d])
    q = F.linear(x[:, first:], weights[0], biases[0]).reshape(b, n - first, attention.num_heads, -1)
    k, v = F.linear(x, weights[1], biases[1]).reshape(b, n, 2, attention.num_heads, -1).unbind(2)
    if rotation is not None:
        q, k = rotate(q, rotation[:, first:]), rotate(k, rotation)
    out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attention.fused_attn)
    return attention.proj(out.transpose(1, 2).reshape(b, n - first, d))
