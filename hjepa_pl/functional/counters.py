"""Random numbers as a function of counters: bitwise equal on every device, rank and worker, and after a resume."""

import enum
import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


class Stream(enum.IntEnum):
    """Names of the independent random streams. A new use gets a new number; numbers are never reused."""

    ORDER = 1
    SOURCE = 2
    CROP = 3
    FLIP = 4
    JITTER = 5
    GRAY = 6
    BLUR = 7
    SOLARIZE = 8
    BLOCK_SHAPE = 9
    BLOCK_PLACE = 10
    KEEP = 11
    SLICES = 12
    STEP = 13
    AFFINE = 14
    JITTER_ORDER = 15
    REPLACE = 16
    NEST = 17
    RAND_AUGMENT = 18
    THREE_AUGMENT = 19
    ERASE = 20
    ERASE_BOX = 21
    MIX = 22
    SHUFFLE_BUFFER = 23
    VIEW = 24
    VIEW_KEEP = 28
    HOLDOUT = 32


def _mix(x: Tensor) -> Tensor:
    """Mix 32-bit values held in int64, in place ("lowbias32" of C. Wellons' hash prospector, a bijection)."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x &= _MASK
    x ^= x >> 15
    x *= 0x846CA68B
    x &= _MASK
    x ^= x >> 16
    return x


def _mix_int(x: int) -> int:
    x ^= x >> 16
    x = (x * 0x7FEB352D) & _MASK
    x ^= x >> 15
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def hash_int(*counters: int) -> int:
    """Return a 32-bit hash of whole numbers, in plain Python (for seeds and draws once per step)."""
    h = 0x9E3779B9
    for c in counters:
        # The high half is hashed too, so that seeds above 32 bits are not truncated.
        h = _mix_int((h + c) & _MASK)
        h = _mix_int((h + (c >> 32)) & _MASK)
    return h


def hash_counters(seed: int, tensor: Tensor) -> Tensor:
    """Return a 32-bit hash (int64 tensor, same shape) of a tensor of counters under an integer key."""
    x = _mix((tensor + seed) & _MASK)
    return _mix((x + (tensor >> 32) + 0x85EBCA6B) & _MASK)


def uniform(key: int, position: Tensor, n: int) -> Tensor:
    """Draw uniform numbers in [0, 1) for each sample.

    Args:
        key: `hash_int(seed, epoch, stream, ...)`, common to all samples.
        position: (B,) int64 counters of the samples.
        n: Numbers per sample.

    Returns:
        (B, n) float32, multiples of 2^-24, bitwise equal on every device.
    """
    return _draw(key, position, n).T.contiguous()


def uniform_at(key: int, position: Tensor, columns: Tensor) -> Tensor:
    """Draw uniform numbers in [0, 1) for some columns: a column is the same whichever others are drawn.

    Args:
        key: As in `uniform`.
        position: (B,) int64 counters of the samples.
        columns: (n,) int64 distinct indices in [0, 2^32), on the device of `position`.

    Returns:
        (n, B) float32, a column of `uniform`'s in each row.
    """
    return _to_uniform(_bits_at(key, position, columns))


def bits(key: int, position: Tensor, n: int) -> Tensor:
    """Draw 32 bits n times for each sample: (B, n) int64; the source of `uniform`."""
    return _bits(key, position, n).T.contiguous()


def _bits(key: int, position: Tensor, n: int) -> Tensor:
    return _bits_at(key, position, torch.arange(n, device=position.device, dtype=torch.int64))


def _bits_at(key: int, position: Tensor, columns: Tensor) -> Tensor:
    """Draw (n, B): few long rows are several times faster than many short ones."""
    return _mix(hash_counters(key, position) ^ _mix((columns[:, None] * 0x9E3779B1) & _MASK))


def _draw(key: int, position: Tensor, n: int) -> Tensor:
    return _to_uniform(_bits(key, position, n))


def _to_uniform(drawn: Tensor) -> Tensor:
    return drawn.bitwise_right_shift_(8).to(torch.float32).mul_(2.0**-24)


_CACHED = 2**16
"""Numbers drawn at a time on the CPU, which fit into its cache: half the time, with the same result."""


def normal(key: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw standard normal numbers of `shape`, float32, as a function of `key` alone (Box-Muller)."""
    index = torch.arange(math.prod(shape), device=device)
    parts = index.split(_CACHED) if index.device.type == "cpu" else [index]
    return torch.cat([_box_muller(*_draw(key, part, 2)) for part in parts]).reshape(shape)


def _box_muller(u: Tensor, v: Tensor) -> Tensor:
    # 1 - u is in (0, 1], so the logarithm is finite.
    return torch.sqrt(-2.0 * torch.log1p(-u)) * torch.cos(2.0 * torch.pi * v)
