"""Running a stack of transformer blocks: the form of attention, and what is recomputed instead of stored."""

from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hjepa_pl.models.attention import AttentionKind, attention_kernel


def run_blocks(
    blocks: nn.ModuleList | nn.Sequential,
    x: Tensor,
    extras: Sequence[tuple[Any, ...]],
    attention: AttentionKind = "auto",
    every: int = 0,
    wanted: Container[object] = (),
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run blocks one after the other.

    Args:
        blocks: The blocks; each is called with the tokens and its `extras`.
        x: (B, N, D) tokens.
        extras: Further arguments of each block.
        attention: Kernel of attention (see `attention_kernel`).
        every: In the backward pass recompute the blocks in groups of so many, storing only what enters a group
            (arXiv:1604.06174; drop path draws the same again); 0 stores everything.
        wanted: Numbers, from 1, of the blocks whose output is returned too.

    Returns:
        The last output, and the wanted ones by number.
    """

    def group(x: Tensor, first: int, end: int) -> tuple[Tensor, ...]:
        kept = []
        with attention_kernel(blocks[first:end], attention, x):
            for i in range(first, end):
                x = blocks[i](x, *extras[i])
                if i + 1 in wanted:
                    kept.append(x)
        return x, *kept

    found: list[Tensor] = []
    recompute = every > 0 and torch.is_grad_enabled()
    size = every if recompute else max(len(blocks), 1)
    for first in range(0, len(blocks), size):
        end = min(first + size, len(blocks))
        x, *kept = checkpoint(group, x, first, end, use_reentrant=False) if recompute else group(x, first, end)
        found += kept
    return x, dict(zip([n for n in range(1, len(blocks) + 1) if n in wanted], found, strict=True))
