"""Memory of a step, free memory, and the largest batch that fits."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from hjepa_pl.data.augment.multicrop import ViewPlan
from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.tools.step_cost import StepCounter, empty_batch, sizes_of


def parameters_of(network: nn.Module | None) -> int:
    """Return the number of parameters, shared ones once."""
    return 0 if network is None else sum(p.numel() for p in network.parameters())


class Memory(NamedTuple):
    """Bytes that a step of one process needs on its device."""

    weights: int
    """Of the trained networks, in 32 bits, with their buffers."""
    target: int
    """Of the target networks."""
    adam: int
    """Two moments of every trained parameter."""
    images: int
    """The views, in 32 bits."""
    step: int
    """Peak of gradients and activations."""


def memory_of(module: HJEPALightningModule, views: ViewPlan, batch_size: int, peak: int) -> Memory:
    """Return the memory of a step, given its peak of gradients and activations (`StepCount.peak`)."""
    held = sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))
    target = 4 * (parameters_of(module.target_encoder) + parameters_of(module.target_pyramid))
    pixels = sum(height * width for height, width in sizes_of(views)) * module.in_chans
    groups = module.parameter_groups()
    adam = sum((4 if group.get("parts") else 8) * p.numel() for group in groups for p in group["params"])
    return Memory(held - target, target, adam, 4 * pixels * batch_size, peak)


def largest(fits: Callable[[int], bool], start: int, most: int = 2**20) -> int:
    """Return about the largest number that fits: by doubling from `start`, then halving the gap to a twentieth.

    Args:
        fits: True for numbers that fit; monotonic.
        start: The first number to try.
        most: The largest number to try.

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
    """Return the largest batch size whose training step fits on a CUDA device, by running steps."""
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
    """Estimate the largest batch size that fits into `available` bytes; memory is linear in the batch size."""
    one, two = (
        sum(memory_of(counter.module, views, size, counter.count(size, step).peak))
        for size in (batch_size, 2 * batch_size)
    )
    each = (two - one) / batch_size
    return max(0, int((available - one) / each) + batch_size)


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the free memory in bytes, within the limits of the machine and of the process's control groups.

    Args:
        root: Folder that holds `proc` and `sys`.

    Returns:
        The bytes; None if the system does not report them.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*free, *_left_in_groups(root)], default=None)


_GROUPS = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Files of control groups of version 2 and 1: folder, limit, usage, and the reclaimable cache within the usage."""


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield the free bytes of the process's control groups and of their parents."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        for kind in set(kinds.split(",")) & set(_GROUPS):
            base, limit, use, cache = _GROUPS[kind]
            group = Path(path.lstrip("/"))
            for folder in dict.fromkeys((group, *group.parents)):
                # A container sees its own group as the root, whatever the path: what is missing is passed over.
                with contextlib.suppress(OSError, ValueError):  # "max" is no limit
                    at = root / base / folder
                    most, used = int((at / limit).read_text()), int((at / use).read_text())
                    stat = dict(entry.split() for entry in (at / "memory.stat").read_text().splitlines())
                    yield max(0, most - used + int(stat.get(cache, 0)))
