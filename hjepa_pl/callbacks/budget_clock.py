"""Elapsed time of a run with a time budget, kept outside its checkpoints: a kill loses steps, not their time."""

import contextlib
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from hjepa_pl.utils.atomic_file import atomic_write

_INTERVAL = 1.0
"""Seconds between two writes: at most so much time is lost by a kill."""


class BudgetClock(pl.Callback):
    """Write the elapsed seconds (`module.progress.seconds`) to `logs/clock.txt`, on rank zero, about once a second.

    Args:
        directory: Folder of the run.
    """

    def __init__(self, directory: str) -> None:
        self.path = _path(Path(directory))
        self._written = 0.0

    def _write(self, trainer: pl.Trainer, pl_module: Any) -> None:
        seconds = pl_module.progress.seconds
        if not trainer.is_global_zero or seconds - self._written < _INTERVAL:
            return
        self._written = seconds
        with atomic_write(self.path, sync=False) as file:
            file.write(f"{seconds:.1f}\n")

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the time of the start-up."""
        self._write(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Write the time after a training step."""
        self._write(trainer, pl_module)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Write the time during a validation."""
        self._write(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the time of the whole run."""
        self._written = 0.0
        self._write(trainer, pl_module)


def seconds_written(directory: Path) -> float:
    """Return the seconds that a run has taken so far, by its `logs/clock.txt`; 0 without one."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return float(_path(directory).read_text())
    return 0.0


def _path(directory: Path) -> Path:
    return directory / "logs" / "clock.txt"
