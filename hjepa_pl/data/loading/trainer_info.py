"""What the trainer and its module tell the data; `trainer` is None where a data module is used by itself."""

import os
from typing import Any

import torch
from lightning.pytorch import Trainer

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.sizes import sides


def told_by_module(trainer: Trainer | None, key: str) -> Any:
    """Return an attribute of the module, None if there is neither."""
    module = getattr(trainer, "lightning_module", None)
    return getattr(module, key, None)


def encoder_geometry(trainer: Trainer | None, key: str, given: Any) -> Any:
    """Return `img_size` or `in_chans`: the data's own, or the encoder's, which may not contradict each other."""
    encoders = told_by_module(trainer, key)
    if given is None and encoders is None:
        raise ConfigError(f"`{key}=None` is refused: the module has no `{key}` to take it from, so set it here.")
    if given is None:
        return encoders
    if encoders is not None and sides(encoders) != sides(given):
        raise ConfigError(
            f"`{key}={given}` of the data is not the encoder's {encoders}: leave it out, "
            "the data takes it from the encoder."
        )
    return given


def ranks(trainer: Trainer | None) -> tuple[int, int]:
    """Return rank and number of processes."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def pins_memory(trainer: Trainer | None) -> bool:
    """Return whether batches go to a CUDA device."""
    strategy = getattr(trainer, "strategy", None)
    return getattr(getattr(strategy, "root_device", None), "type", "cpu") == "cuda"


def room_for(trainer: Trainer | None, size: int) -> torch.device | None:
    """Return the run's CUDA device where so many bytes of images are a twentieth of its memory at most, or None."""
    device = getattr(getattr(trainer, "strategy", None), "root_device", None)
    if device is None or device.type != "cuda":
        return None
    return device if 20 * size <= torch.cuda.get_device_properties(device).total_memory else None


def free_workers(trainer: Trainer | None) -> int:
    """Return a number of workers that leaves each process of this machine its share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = getattr(trainer, "num_devices", 1)
    return max(1, min(16, cores // max(1, local)))


def run_folder(trainer: Trainer | None) -> str | None:
    """Return the folder of the run, None without one and for a trial of a few steps."""
    if trainer is None or getattr(trainer, "fast_dev_run", False):
        return None
    return str(trainer.default_root_dir)


def processed_batches(trainer: Trainer | None) -> int:
    """Return how many training batches have been processed since the start of the run."""
    if trainer is None:
        return 0
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.processed)  # type: ignore[attr-defined]


def refuse_overfit(trainer: Trainer) -> None:
    """Refuse a Trainer that would take the same few batches in an order of its own."""
    overfit = getattr(trainer, "overfit_batches", 0)
    if overfit:
        raise ConfigError(
            f"`trainer.overfit_batches={overfit}` is refused: the order of images comes from the epoch's plan; "
            "set epoch_size, or a dataset's fraction, instead."
        )


def batch_limit(trainer: Trainer | None, batches: int) -> int | None:
    """Return at how many of an epoch's batches the trainer stops, None without one."""
    if trainer is None:
        return None
    refuse_overfit(trainer)
    limit = trainer.limit_train_batches
    return limit if isinstance(limit, int) else int(batches * limit)
