"""Schedules as pure functions of progress, the fraction of the run that is done, in [0, 1]."""

import math


def linear(start: float, end: float, progress: float) -> float:
    """Go from `start` to `end` linearly."""
    return end + (start - end) * (1.0 - min(max(progress, 0.0), 1.0))


def cosine(start: float, end: float, progress: float) -> float:
    """Go from `start` to `end` on half a cosine."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def warmup_cosine(peak: float, floor: float, warmup: float, progress: float) -> float:
    """Rise linearly to `peak` over the first `warmup` fraction of the run, then fall to `floor` on a cosine."""
    if progress < warmup:
        return peak * progress / warmup
    return cosine(peak, floor, (progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0)


def warmup_stable_decay(peak: float, floor: float, warmup: float, cooldown: float, progress: float) -> float:
    """Rise linearly to `peak` in the first `warmup` of the run, stay, and fall to `floor` in the last `cooldown`.

    It falls as 1 - sqrt, which ended lower than a linear cool-down (arXiv:2405.18392, section 3).
    """
    if progress < warmup:
        return peak * progress / warmup
    since = progress - (1.0 - cooldown)
    return peak if since <= 0.0 else floor + (peak - floor) * (1.0 - math.sqrt(min(since / cooldown, 1.0)))


def capped_momentum(momentum: float, total_steps: float) -> float:
    """Cap a momentum so that its horizon 1 / (1 - momentum) is at most a third of the run's steps."""
    return min(momentum, max(0.0, 1.0 - 3.0 / total_steps)) if total_steps > 0 else momentum
