"""Choices among many places that come out alike on every device."""

import torch
from torch import Tensor

from hjepa_pl.functional.counters import bits

LATER = 2**30
"""Added to a score: it comes after every score without it, and the sum is still below 2^31."""


def scores(key: int, position: Tensor, n: int) -> Tensor:
    """Draw a number below 2^30 for each of `n` places, (B, n) int32.

    The place is in the low bits: no two of a row are equal, so that every device picks the same. 32 bits, because
    Apple's GPUs select in no more (torch 2.11 and 2.12 cut 64-bit numbers, without a word).
    """
    place = torch.arange(n, device=position.device)
    drawn = bits(key, position, n).bitwise_right_shift_(2).bitwise_and_(-(1 << _place_bits(n)))
    return drawn.add_(place).to(torch.int32)


def some_of(values: Tensor, n: int) -> Tensor:
    """Return some of the scores of `n` places, (B, m), with their places among the m."""
    drawn = values.bitwise_right_shift(_place_bits(n)).bitwise_left_shift_(_place_bits(n))
    return drawn.add_(torch.arange(values.shape[1], dtype=torch.int32, device=values.device))


def smallest(values: Tensor, count: int) -> Tensor:
    """Return where the smallest scores of each row (B, N) stand: (B, count) int64, in no order.

    The scores are given up.
    """
    # NumPy's partition takes a quarter of topk's time on a CPU. (A fake tensor has no numbers.)
    if values.device.type == "cpu" and type(values) is Tensor:
        values.numpy().partition(count - 1, axis=1)
        chosen = values[:, :count]
    else:
        chosen = values.topk(count, dim=1, largest=False, sorted=False).values
    return (chosen & ((1 << _place_bits(values.shape[1])) - 1)).long()


def first_true(flags: Tensor) -> Tensor:
    """Return the place of the first true of each row (B, n), 0 where none is: (B,) int64.

    The flags have falling weights, so that the answer hangs on no device's choice among equals.
    """
    weights = torch.arange(flags.shape[1], 0, -1, dtype=torch.int32, device=flags.device)
    return (flags * weights).argmax(dim=1)


def _place_bits(n: int) -> int:
    return (n - 1).bit_length()
