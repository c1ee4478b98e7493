"""How long a run has taken, kept outside its checkpoints: a kill loses steps, but their time is spent."""

import contextlib
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

_EVERY = 1.0
"""Seconds between two notes: what a kill may leave uncounted."""


class Clock(pl.Callback):
    """Write the seconds of the module's `progress` to `logs/clock.txt`, on rank zero, about once a second.

    Args:
        directory: Folder of the run.
    """

    def __init__(self, directory: str) -> None:
        self.path = _path(Path(directory))
        self._noted = 0.0

    def _note(self, trainer: pl.Trainer, pl_module: Any) -> None:
        seconds = pl_module.progress.seconds
        if not trainer.is_global_zero or seconds - self._noted < _EVERY:
            return
        self._noted = seconds
        part = self.path.with_suffix(".part")
        part.write_text(f"{seconds:.1f}\n")
        os.replace(part, self.path)  # a kill leaves the old note or the new one

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what the start took."""
        self._note(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Note what training took."""
        self._note(trainer, pl_module)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Note what a validation took so far."""
        self._note(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what the whole took."""
        self._noted = 0.0
        self._note(trainer, pl_module)


def seconds_noted(directory: Path) -> float:
    """Return the seconds that a run has taken by its last note, 0 if it left none."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return float(_path(directory).read_text())
    return 0.0


def _path(directory: Path) -> Path:
    return directory / "logs" / "clock.txt"
