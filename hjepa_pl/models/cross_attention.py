"""Cross-attention blocks of the predictor."""

from collections.abc import Callable

from timm.layers import LayerScale, Mlp
from torch import Tensor, nn

from hjepa_pl.models.attention import attend
from hjepa_pl.models.rope import rotate


class CrossAttention(nn.Module):
    """Queries attend to a context and not to one another."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.fused_attn = num_heads, True
        self.query, self.key_value, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, rotations: tuple[Tensor, Tensor] | None) -> Tensor:
        """Attend from x (B, Q, P) to a context (B, K, P); `rotations` are those of both, or None without RoPE."""
        b, n, d = x.shape
        q = self.query(x).reshape(b, n, self.num_heads, -1)
        k, v = self.key_value(context).reshape(b, context.shape[1], 2, self.num_heads, -1).unbind(2)
        if rotations is not None:
            q, k = rotate(q, rotations[0]), rotate(k, rotations[1])
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self.fused_attn)
        return self.proj(out.transpose(1, 2).reshape(b, n, d))


class CrossBlock(nn.Module):
    """Pre-norm transformer block: queries attend to a fixed context and not to one another."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, init_values: float | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = CrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        scale: Callable[[], nn.Module] = lambda: LayerScale(dim, init_values) if init_values else nn.Identity()  # noqa: E731
        self.ls1, self.ls2 = scale(), scale()

    def forward(self, x: Tensor, context: Tensor, rotations: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Update queries (B, Q, P) from a context (B, K, P)."""
        x = x + self.ls1(self.attn(self.norm1(x), context, rotations))
        return x + self.ls2(self.mlp(self.norm2(x)))
