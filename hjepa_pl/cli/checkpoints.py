"""Checkpoints of a run: settings, callbacks and atomic writing."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer import Trainer

from hjepa_pl.callbacks.selection import Mode, check_mode, reject_test_metric
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.atomic_file import atomic_write
from hjepa_pl.utils.settings import Count, settings
from hjepa_pl.utils.wording import either


@settings("checkpoint")
class CheckpointConfig:
    """Checkpoints that are kept in addition to last.ckpt, which is written at the end of every epoch."""

    monitor: str | None = None
    """Validation metric that ranks the best checkpoints, such as `probe/<set>/knn_val`, or with `data.holdout`
    `val/rankme`, `val/lidar`, `val/alpha_req_gap`, `val/loss`, `val/<level>` or `val/<level>/gain`; null is
    `probe/<set>/linear_val` of the first probe set, if there is one, else `val/rankme`. Metrics of a test split are
    rejected."""
    mode: Literal["max", "min"] | None = None
    """Whether a larger or a smaller metric is better; null is what the metric is. The other end is rejected."""
    save_top_k: Annotated[int, Ge(0)] = 3
    """Number of best checkpoints that are kept; 0 is none. File names count epochs from 0."""
    every_n_epochs: Count | None = None
    """Also keep a checkpoint of every n-th epoch for good."""
    last_every_n_steps: Count | None = None
    """Also write last.ckpt every n optimizer steps, so that a killed run loses less than an epoch."""


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint of which a run can have several, and which saves whole optimizer steps only."""

    @property
    def state_key(self) -> str:
        """Name of the state in a checkpoint, with the file name, since two callbacks may differ in that alone."""
        return f"{super().state_key}[{self.filename}]"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Regard the step at which a run resumes as saved, or a checkpoint in mid-accumulation would repeat it."""
        self._last_global_step_saved = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rank by the monitored metric, if this validation has logged it."""
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)


def checkpoint_callbacks(config: CheckpointConfig, folder: Path, metrics: dict[str, Mode]) -> list[ModelCheckpoint]:
    """Return the callbacks that write last.ckpt, the best by a validation metric, and one every n epochs.

    Args:
        config: The settings.
        folder: Folder of the checkpoints.
        metrics: Those of `selection_metrics`; the first one ranks checkpoints by default.

    Raises:
        ConfigError: If `monitor` is a metric of a test split, or not one of these, or `mode` is its worse end.
    """
    monitor = config.monitor or next(iter(metrics), None)
    reject_test_metric("checkpoint.monitor", monitor)
    if monitor is not None and monitor not in metrics:
        expected = (
            f"must be {either(metrics)}"
            if metrics
            else "there is no probe set; add one to data.probe, or set data.holdout"
        )
        if monitor.startswith("val/") and not any(name.startswith("val/") for name in metrics):
            expected = "no images are held out; set data.holdout"
        raise ConfigError(f"invalid `checkpoint.monitor={monitor}`: {expected}.")
    for key in ("mode", "save_top_k"):
        if monitor is None and (value := getattr(config, key)) != getattr(CheckpointConfig, key):
            raise ConfigError(
                f"invalid `checkpoint.{key}={value}`: has no effect without a probe set; add one to data.probe, set "
                "data.holdout, or remove the key."
            )
    if monitor is not None and config.mode is not None:
        check_mode("checkpoint.mode", monitor, config.mode, metrics[monitor])
    common: dict[str, Any] = {"dirpath": folder, "auto_insert_metric_name": False, "enable_version_counter": False}
    callbacks: list[ModelCheckpoint] = [RunCheckpoint(filename="last", save_on_train_epoch_end=True, **common)]
    if config.last_every_n_steps:
        callbacks.append(RunCheckpoint(filename="last", every_n_train_steps=config.last_every_n_steps, **common))
    if config.every_n_epochs:
        kept: dict[str, Any] = {
            "save_top_k": -1,
            "every_n_epochs": config.every_n_epochs,
            "save_on_train_epoch_end": True,
        }
        callbacks.append(RunCheckpoint(filename="epoch{epoch:04d}", **kept, **common))
    if monitor and config.save_top_k:
        ranked: dict[str, Any] = {"monitor": monitor, "mode": metrics[monitor], "save_top_k": config.save_top_k}
        callbacks.append(
            RunCheckpoint(filename="best-epoch{epoch:04d}", save_on_train_epoch_end=False, **ranked, **common)
        )
    return callbacks


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, so that a file of the name is always whole.

    Lightning's writer goes through the system's temporary folder, and the move from there to another file system is a
    copy, which a kill or a full disk truncates.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save a checkpoint; nothing is left behind if it fails."""
        with atomic_write(path, "wb") as file:
            torch.save(checkpoint, file)
