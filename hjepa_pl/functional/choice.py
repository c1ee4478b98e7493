"""Random choices of positions, identical on every device."""

import torch
from torch import Tensor

from hjepa_pl.functional.counters import bits

LATER = 2**30
"""Added to a score, it comes after every score without it; the sum is still below 2^31."""


def scores(key: int, position: Tensor, n: int) -> Tensor:
    """Draw a number below 2^30 for each of `n` positions, (B, n) int32.

    The index is in the low bits: no two of a row are equal, so that every device picks the same. 32 bits, because
    Apple's GPUs compare no more in topk (torch 2.11 and 2.12 silently truncate 64-bit numbers).

    Args:
        key: As in `uniform`.
        position: (B,) int64 counters of the samples.
        n: Number of positions.
    """
    index = torch.arange(n, device=position.device)
    drawn = bits(key, position, n).bitwise_right_shift_(2).bitwise_and_(-(1 << _index_bits(n)))
    return drawn.add_(index).to(torch.int32)


def some_of(values: Tensor, n: int) -> Tensor:
    """Return scores (B, m), a selection of those of `n` positions, with their index among the m."""
    drawn = values.bitwise_right_shift(_index_bits(n)).bitwise_left_shift_(_index_bits(n))
    return drawn.add_(torch.arange(values.shape[1], dtype=torch.int32, device=values.device))


def smallest(values: Tensor, count: int) -> Tensor:
    """Return the indices of the smallest scores of each row (B, N): (B, count) int64, in no order.

    Overwrites `values`.
    """
    # NumPy's partition takes a quarter of topk's time on a CPU. (A fake tensor has no values.)
    if values.device.type == "cpu" and type(values) is Tensor:
        values.numpy().partition(count - 1, axis=1)
        chosen = values[:, :count]
    else:
        chosen = values.topk(count, dim=1, largest=False, sorted=False).values
    return (chosen & ((1 << _index_bits(values.shape[1])) - 1)).long()


def first_true(flags: Tensor) -> Tensor:
    """Return the index of the first true of each row (B, n), 0 if there is none: (B,) int64.

    The flags have decreasing weights, as devices differ in their argmax of equal values.
    """
    weights = torch.arange(flags.shape[1], 0, -1, dtype=torch.int32, device=flags.device)
    return (flags * weights).argmax(dim=1)


def _index_bits(n: int) -> int:
    return (n - 1).bit_length()
