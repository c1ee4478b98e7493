"""Targets of the token levels: mean of the normalized outputs of the target encoder's last blocks (data2vec)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from hjepa_pl.functional.tokens import plain_norm
from hjepa_pl.models.base import Block
from hjepa_pl.utils.distributed import mean_over_ranks

TargetNorm = Literal["layer", "instance", "batch"]
"""Over what a block's output is normalized: a token's channels, each channel of an image's tokens, or of all tokens."""
_EPS = 1e-5
"""Added to variances, as in `torch.nn.functional.instance_norm`."""


def last_blocks(block: Block, count: int, depth: int) -> tuple[Block, ...]:
    """Return the `count` blocks that end at a level's block.

    Args:
        block: The level's block; 'last' is block `depth` after the final norm.
        count: Number of blocks, at most the level's depth.
        depth: Number of blocks of the encoder.

    Example:
        >>> last_blocks("last", 3, depth=12), last_blocks(6, 2, depth=12)
        ((10, 11, 'last'), (5, 6))
    """
    end = depth if block == "last" else block
    return (*range(end - count + 1, end), block)


def mean_of_blocks(outputs: Sequence[Tensor], norm: TargetNorm) -> Tensor:
    """Return the mean of blocks' outputs, each normalized first (data2vec, arXiv:2202.03555, section 3.3).

    Args:
        outputs: (B, N, D) of each block, on the full grid, after a layer norm of its own.
        norm: Normalization of each output. 'layer' does not repeat the layer norm of a single one.

    Returns:
        (B, N, D), to be layer-normed, as in data2vec 2.0 (arXiv:2212.07525).
    """
    if norm == "layer" and len(outputs) == 1:
        return outputs[0]
    total = normalize(outputs[0], norm)
    for output in outputs[1:]:
        total = total + normalize(output, norm)
    return total / len(outputs)


def normalize(tokens: Tensor, norm: TargetNorm) -> Tensor:
    """Normalize tokens (B, N, D) to mean 0 and variance 1, without parameters, in float32.

    'layer' takes the statistics of each token. 'instance' takes those of each channel over the tokens of one image:
    what all tokens of an image have in common is gone. 'batch' takes those of each channel over the tokens of the
    images of all ranks, as constants without gradient: what all images have in common is gone.
    """
    x = tokens.float()
    if norm == "layer":
        return plain_norm(x)
    if norm == "instance":
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + _EPS)
    with torch.no_grad():
        mean = mean_over_ranks(x.mean(dim=(0, 1)))
        variance = mean_over_ranks((x - mean).square().mean(dim=(0, 1)))
    return (x - mean) * torch.rsqrt(variance + _EPS)
