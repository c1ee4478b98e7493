"""Worker slots: which worker reads which part of a stream.

A process has as many slots as loader workers (one without workers), and slot s makes the batches s, s + slots,
s + 2 * slots ... of an epoch, whichever worker that is. So what a stream gives at a position is a function of (seed,
epoch, position), of the shards, and of the numbers of processes and workers, and of nothing else.
"""

import os
from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from hjepa_pl.data.sources.images import Images
from hjepa_pl.data.sources.shards import is_streamed
from hjepa_pl.types import ConfigError

_MAX_WORKERS = 16


def num_slots(num_workers: int) -> int:
    """Return the number of worker slots of a process."""
    return max(1, num_workers)


def slot_positions(source: Tensor, dataset: int, batch_size: int, world_size: int, slots: int) -> Tensor:
    """Return the position in its worker slot of each sample of a streamed set.

    Args:
        source: (epoch_size,) dataset of each position of an epoch of whole global batches.
        dataset: Index of the set.
        batch_size: Images per process.
        world_size: Number of processes.
        slots: Worker slots of each process.

    Returns:
        int64, one for each position of the set, in order.
    """
    drawn = (source == dataset).view(-1, world_size, batch_size)
    positions = torch.empty(drawn.shape, dtype=torch.int64)
    for slot in range(min(slots, len(drawn))):
        of_slot = drawn[slot::slots].transpose(0, 1)  # processes x batches x images
        running = of_slot.flatten(1).cumsum(1) - 1
        positions[slot::slots] = running.view(of_slot.shape).transpose(0, 1)
    return positions[drawn]


def available_workers(trainer: Trainer | None) -> int:
    """Return the number of CPU cores for each process of this machine, between 1 and 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = getattr(trainer, "num_devices", 1)
    return max(1, min(_MAX_WORKERS, cores // max(1, processes)))


def choose_num_workers(sets: Sequence[Images], num_workers: int | None, available: int, world_size: int) -> int:
    """Return the number of loader workers of a process.

    There are none if all sets are in memory. Otherwise each worker of each process needs a shard of every streamed set.

    Args:
        sets: What is read.
        num_workers: The configured number; None chooses one.
        available: The number to choose, if there are enough shards.
        world_size: Number of processes.

    Raises:
        ConfigError: If a set has fewer shards than `num_workers` needs, or than there are processes.
    """
    if all(images.in_memory for images in sets):
        return 0
    shards = min((len(images.shards) for images in sets if is_streamed(images)), default=None)
    if shards is None:
        return available if num_workers is None else num_workers
    if shards < world_size * num_slots(num_workers or 0):
        workers = "1 worker" if num_workers is None else f"num_workers={num_workers}"
        lower = f"lower num_workers to {shards // world_size}, or make" if shards >= world_size else "make"
        raise ConfigError(
            f"a dataset has {shards} shard(s), fewer than {workers} x {world_size} process(es), each of which reads "
            f"shards of its own; {lower} more and smaller shards (`hjepa shards --per-shard`; dataset webdataset)."
        )
    return min(available, shards // world_size) if num_workers is None else num_workers
