"""The largest batch that fits: found by trial on a CUDA device, by the counted memory elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hjepa_pl.data.multicrop import ViewPlan
from hjepa_pl.tools.counting import StepCounter, empty_batch, memory_of


def largest(fits: Callable[[int], bool], start: int, most: int = 2**20) -> int:
    """Return about the largest number that fits: by doubling from `start`, then halving the gap to a twentieth.

    Args:
        fits: Whether a number does; all below one that fits do too.
        start: Where to begin.
        most: Where to stop.

    Returns:
        The number; 0 if not even 2 fits.
    """
    low, high = 0, start
    while high <= most and fits(high):
        low, high = high, high * 2
    if low == 0:
        while high > 2:
            high //= 2
            if fits(high):
                low, high = high, high * 2
                break
        else:
            return 0
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def by_trial(module: Any, views: ViewPlan, device: torch.device, half: bool, start: int, step: int) -> int:
    """Return the largest batch of which a CUDA device can make a step: networks, loss, backward, optimizer, EMA."""
    module.to(device).train()
    optimizer = module.configure_optimizers()

    def make_step(images: int) -> None:
        batch = empty_batch(module, views, images, step, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss, _ = module.compute(batch)
        loss.backward()
        optimizer.step()
        if module.ema is not None:
            module.move_target(0.996)
        torch.cuda.synchronize(device)

    def fits(images: int) -> bool:
        fitted = True
        try:
            make_step(images)
        except torch.OutOfMemoryError:
            fitted = False
        # Not within `except`: there the error still holds the tensors of the step.
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return fitted

    return largest(fits, start)


def by_count(counter: StepCounter, views: ViewPlan, batch_size: int, step: int, available: int) -> int:
    """Return how large a batch may be for its counted memory to be available: bytes grow evenly with images."""
    one, two = (
        sum(memory_of(counter.module, views, size, counter.count(size, step).peak))
        for size in (batch_size, 2 * batch_size)
    )
    each = (two - one) / batch_size
    return max(0, int((available - one) / each) + batch_size)


def available_memory() -> int | None:
    """Return the bytes of this machine's memory that are free for use; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
