"""Rotary position embedding (RoPE for vision, arXiv:2403.13298): attention logits depend on relative positions.

A rotation is a cosine and a sine for each pair of a head's channels. timm rotates by stacking, concatenating and
multiplying, each a pass over memory; here queries and keys are rotated by one product, of complex numbers where the
device is fast at it.
"""

import torch
from timm.layers import AttentionRope
from torch import Tensor, nn

from hjepa_pl.functional.tokens import cell_centers
from hjepa_pl.models.attention import attend


def rotations(table: Tensor, prefix: int = 0) -> Tensor:
    """Convert timm's rotary table to rotations.

    Args:
        table: (..., K, 2 d): sines, then cosines, of every pair of channels, twice each; the leading axes are none,
            heads, or batch and heads (each may be 1).
        prefix: Number of prefix tokens, which are not rotated.

    Returns:
        (B or 1, prefix + K, 1, heads or 1, d / 2, 2), float32: cosine and sine; see `rotate`.
    """
    sin, cos = table.float().chunk(2, dim=-1)
    rotation = torch.stack([cos[..., ::2], sin[..., ::2]], dim=-1)
    rotation = rotation[(None,) * (5 - rotation.ndim)].transpose(1, 2)[:, :, None]
    if not prefix:
        return rotation
    identity = rotation.new_zeros(len(rotation), prefix, *rotation.shape[2:])
    identity[..., 0] = 1.0
    return torch.cat([identity, rotation], dim=1)


def axial_rotations(grid: tuple[int, int], head_dim: int, theta: float, cell: int = 1) -> Tensor:
    """Return the rotations at the centers of all cells: half of a head's pairs for the column, half for the row.

    Args:
        grid: H and W of the patch grid.
        head_dim: Channels of a head, a multiple of 4.
        theta: Base of the frequencies: pair i of the d / 4 of an axis rotates by theta ** (-4 i / d) radians a patch.
        cell: Height and width of a cell in patches; 1 gives the patches themselves.

    Returns:
        (H // cell * W // cell, head_dim / 2, 2), float32: cosine and sine.
    """
    return rotations_at(*cell_centers(grid, cell), head_dim, theta).float()


def rotations_at(rows: Tensor, columns: Tensor, head_dim: int, theta: float) -> Tensor:
    """Return the rotations at rows and columns in patches, (...) each: (..., head_dim / 2, 2), cosine and sine."""
    pair = torch.arange(head_dim // 4, dtype=rows.dtype, device=rows.device)
    frequency = theta ** -(pair / (head_dim // 4))
    angles = torch.cat([columns[..., None] * frequency, rows[..., None] * frequency], dim=-1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def complex_is_faster(device: str, compiling: bool) -> bool:
    """Return True if a product of complex numbers is the faster rotation on a type of device.

    It is one kernel on a CPU and with CUDA. On Apple's GPU (mps) complex numbers are slow or incomplete; inductor does
    not support them, and fuses the real form into one kernel.
    """
    return device in ("cpu", "cuda") and not compiling


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate each pair of adjacent channels of x (..., d) by `rotation` (..., d / 2, 2) in float32; keeps the dtype."""
    pairs = x.float().unflatten(-1, (-1, 2))
    by_complex = complex_is_faster(x.device.type, torch.compiler.is_compiling())
    rotated = (_complex_product if by_complex else _real_product)(pairs, rotation)
    return rotated.flatten(-2).to(x.dtype)


def _complex_product(pairs: Tensor, rotation: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation))


def _real_product(pairs: Tensor, rotation: Tensor) -> Tensor:
    (a, b), (c, s) = pairs.unbind(-1), rotation.unbind(-1)
    return torch.stack([a * c - b * s, a * s + b * c], dim=-1)


class RotaryAttention(nn.Module):
    """timm's `AttentionRope`, with its layers under their names; queries and keys are rotated in one product."""

    def __init__(self, attention: AttentionRope) -> None:
        super().__init__()
        self.num_heads, self.num_prefix_tokens = attention.num_heads, attention.num_prefix_tokens
        self.fused_attn = attention.fused_attn
        assert attention.qkv is not None
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm

    @staticmethod
    def replaces(attention: nn.Module) -> bool:
        """Return True if this class computes the same as a layer."""
        plain = type(attention) is AttentionRope and attention.qkv is not None and attention.gate is None
        return plain and not attention.rotate_half and isinstance(attention.norm, nn.Identity)

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend within x (B, N, D); `rope` is the `rotations` of its tokens, or timm's table."""
        if rope is None or attn_mask is not None or is_causal:
            raise NotImplementedError("RotaryAttention takes rotary positions and no mask")
        if rope.ndim < 6:  # the table that timm's own forward passes
            rope = rotations(rope, self.num_prefix_tokens)
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, -1)
        qk, v = qkv[:, :, :2], qkv[:, :, 2]
        if not isinstance(self.q_norm, nn.Identity):
            qk = torch.stack([self.q_norm(qk[:, :, 0]), self.k_norm(qk[:, :, 1])], dim=2)
        q, k = rotate(qk, rope).to(v.dtype).unbind(2)
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self.fused_attn)
        return self.proj(out.transpose(1, 2).reshape(b, n, -1))
