"""The last block of a stack whose output is read at some tokens only: the others are keys and values, and no more."""

from typing import Any

from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn import functional as F

from hjepa_pl.models.attention import attend
from hjepa_pl.models.rope import rotate


class LastBlock(Block):
    """timm's `Block`, by its parameters, that returns the tokens from number `first` on."""

    def forward(self, x: Tensor, first: int) -> Tensor:  # type: ignore[override]
        """Turn (B, N, D) into (B, N - first, D), equal to those rows of `Block.forward`."""
        out = x[:, first:] + self.ls1(attend_from(self.attn, self.norm1(x), first))
        return out + self.ls2(self.mlp(self.norm2(out)))


class LastRotaryBlock(EvaBlock):
    """timm's `EvaBlock`, by its parameters, that returns the tokens from number `first` on."""

    def forward(self, x: Tensor, rope: Tensor, first: int) -> Tensor:  # type: ignore[override]
        """Turn (B, N, D) into (B, N - first, D); `rope` as in `RotaryAttention`."""
        seen = attend_from(self.attn, self.norm1(x), first, rope[:, :, 0])
        out = x[:, first:] + (seen if self.gamma_1 is None else self.gamma_1 * seen)
        more = self.mlp(self.norm2(out))
        return out + (more if self.gamma_2 is None else self.gamma_2 * more)


def attend_from(attention: Any, x: Tensor, first: int, turn: Tensor | None = None) -> Tensor:
    """Attend from the tokens from number `first` on to all.

    Args:
        attention: Layer with `qkv` and `proj` of timm's form, without norms of queries and keys.
        x: (B, N, D).
        first: Number of the first token that is asked for.
        turn: Rotations of queries and keys (B or 1, N, heads or 1, d / 2, 2), or None.

    Returns:
        (B, N - first, D).
    """
    b, n, d = x.shape
    weights, biases = attention.qkv.weight.split([d, 2 * d]), attention.qkv.bias.split([d, 2 * d])
    q = F.linear(x[:, first:], weights[0], biases[0]).reshape(b, n - first, attention.num_heads, -1)
    k, v = F.linear(x, weights[1], biases[1]).reshape(b, n, 2, attention.num_heads, -1).unbind(2)
    if turn is not None:
        q, k = rotate(q, turn[:, first:]), rotate(k, turn)
    out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attention.fused_attn)
    return attention.proj(out.transpose(1, 2).reshape(b, n - first, d))
