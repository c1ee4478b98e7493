"""Checkpoints of a run: which are kept, and how they are written."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer import Trainer

from hjepa_pl.callbacks.selection import reject_test_metric, selection_metrics
from hjepa_pl.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Which checkpoints are kept beside last.ckpt, which is written at the end of every epoch."""

    monitor: str | None = None
    """Validation metric that ranks the best checkpoints, as `probe/<set>/knn_val`; null is `probe/<set>/linear_val` of
    the first probe set, if there is one. Metrics of a test split are refused."""
    mode: Literal["max", "min"] = "max"
    """Whether a larger or a smaller metric is better."""
    save_top_k: int = 3
    """How many of the best are kept; 0 is none."""
    every_n_epochs: int | None = None
    """Also keep a checkpoint of every n-th epoch for good."""
    last_every_n_steps: int | None = None
    """Also write last.ckpt every n optimizer steps, so that a killed run loses less than an epoch."""

    def __post_init__(self) -> None:
        """Refuse counts below one."""
        if self.save_top_k < 0:
            raise ConfigError(f"checkpoint.save_top_k must not be negative, got {self.save_top_k}.")
        for name in ("every_n_epochs", "last_every_n_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"checkpoint.{name} must be at least 1, got {value}.")


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that several of can stand in one run, and that saves whole optimizer steps only."""

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint: by file name too, since only that tells two of ours apart."""
        return f"{super().state_key}[{self.filename}]"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the step that a run resumes at for saved, or a checkpoint in mid-accumulation would repeat it."""
        self._last_global_step_saved = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rank by the monitored figure, where this validation gave one."""
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)


def checkpoint_callbacks(config: CheckpointConfig, folder: Path, probes: list[str]) -> list[ModelCheckpoint]:
    """Return the callbacks that write last.ckpt, the best by a probe's validation metric, and one every n epochs.

    Raises:
        ConfigError: If the metric to rank by is measured on a test split, or none that the probe sets give.
    """
    figures = selection_metrics(probes)
    monitor = config.monitor or (figures[0] if figures else None)
    reject_test_metric("checkpoint.monitor", monitor)
    if monitor is not None and monitor not in figures:
        raise ConfigError(
            f"invalid `checkpoint.monitor={monitor}`: is no validation metric of a probe set; "
            + (f"{', '.join(figures)} are." if figures else "add one to data.init_args.probe.")
        )
    if monitor is None and (config.mode, config.save_top_k) != ("max", 3):
        raise ConfigError("checkpoint.mode and save_top_k do nothing without a probe set; add one, or remove them.")
    common: dict[str, Any] = {"dirpath": folder, "auto_insert_metric_name": False, "enable_version_counter": False}
    found: list[ModelCheckpoint] = [RunCheckpoint(filename="last", save_on_train_epoch_end=True, **common)]
    if config.last_every_n_steps:
        found.append(RunCheckpoint(filename="last", every_n_train_steps=config.last_every_n_steps, **common))
    if config.every_n_epochs:
        kept: dict[str, Any] = {
            "save_top_k": -1,
            "every_n_epochs": config.every_n_epochs,
            "save_on_train_epoch_end": True,
        }
        found.append(RunCheckpoint(filename="epoch{epoch:04d}", **kept, **common))
    if monitor and config.save_top_k:
        ranked: dict[str, Any] = {"monitor": monitor, "mode": config.mode, "save_top_k": config.save_top_k}
        found.append(RunCheckpoint(filename="best-epoch{epoch:04d}", save_on_train_epoch_end=False, **ranked, **common))
    return found


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it there, so that a file of the name is always whole.

    Lightning's own writer goes through the system's temporary folder, from where a move to another file system is a
    copy, which a kill or a full disk cuts in half.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save, flush to the disk and rename; on failure leave nothing behind."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
