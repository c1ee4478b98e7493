"""The process of a loader, its position in the run, and the run's folder, read from the Trainer."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer

from hjepa_pl.types import ConfigError


class TrainerInfo(NamedTuple):
    """The process of a loader and its position in the run; by default that of a data module without a Trainer."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    """Where batches go."""
    limit: int | float | None = None
    """`limit_train_batches`: batches of an epoch as a number or a fraction; None takes all."""
    run_folder: str | None = None
    """None without a Trainer and with fast_dev_run."""
    position: Callable[[], int] = lambda: 0
    """Returns the number of training batches processed since the start of the run. Call it when the loader starts: a
    resumed Trainer knows it only then."""


def trainer_info(trainer: Trainer | None) -> TrainerInfo:
    """Return what the loaders need to know of a Trainer.

    Raises:
        ConfigError: With `overfit_batches`, which has no effect on a loader that follows the epoch plan. (The command
            line and `HJEPALightningModule` reject it earlier; another module does not.)
    """
    if trainer is None:
        return TrainerInfo()
    overfit = getattr(trainer, "overfit_batches", 0)
    if overfit:
        raise ConfigError(
            f"invalid `trainer.overfit_batches={overfit}`: must be 0: the order of images comes from the epoch's plan; "
            "set data.epoch_size, or a dataset's fraction."
        )
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return TrainerInfo(
        trainer.global_rank,
        trainer.world_size,
        getattr(trainer.strategy, "root_device", torch.device("cpu")),
        trainer.limit_train_batches,
        None if getattr(trainer, "fast_dev_run", False) else str(trainer.default_root_dir),
        lambda: int(progress.total.processed),  # type: ignore[attr-defined]
    )
