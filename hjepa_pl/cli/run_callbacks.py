"""Callbacks of a training run, and checks of those that a config adds."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from hjepa_pl.callbacks.budget_clock import BudgetClock
from hjepa_pl.callbacks.model_line import ModelLine
from hjepa_pl.callbacks.pictures import PictureCallback
from hjepa_pl.callbacks.progress_bar import ProgressBar
from hjepa_pl.callbacks.selection import Mode, check_mode, reject_test_metric
from hjepa_pl.callbacks.summary import RunSummary
from hjepa_pl.callbacks.train_log import TrainLog
from hjepa_pl.cli.checkpoints import CheckpointConfig, checkpoint_callbacks
from hjepa_pl.cli.run_folder import LoggingConfig, build_loggers
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import either


def training_callbacks(
    trainer: dict[str, Any],
    checkpoint: CheckpointConfig,
    folder: Path,
    metrics: dict[str, Mode],
    save: pl.Callback,
    *,
    budgeted: bool,
    pictures: bool,
) -> list[pl.Callback]:
    """Return the callbacks of a training run, except for probes and the collapse monitor.

    Args:
        trainer: The Trainer's keys.
        checkpoint: Settings of the checkpoints.
        folder: Folder of the run.
        metrics: Those that may rank checkpoints (`selection_metrics`), the default first.
        save: Writes the config.
        budgeted: Whether the run has a time budget.
        pictures: Whether pictures are drawn.

    Raises:
        ConfigError: If checkpoints are configured and disabled.
    """
    callbacks: list[pl.Callback] = []
    if trainer["enable_checkpointing"] is not False:
        callbacks += checkpoint_callbacks(checkpoint, folder.absolute() / "checkpoints", metrics)
    elif checkpoint != CheckpointConfig():
        raise ConfigError(
            "invalid `trainer.enable_checkpointing=false`: the keys of checkpoint have no effect with it; set it to "
            "true, or remove them."
        )
    log = TrainLog(str(folder))
    callbacks += [save, log, RunSummary(str(folder), log)]
    if pictures:
        callbacks.append(PictureCallback(str(folder)))
    if budgeted:
        callbacks.append(BudgetClock(str(folder)))
    if trainer["enable_progress_bar"] is not False:
        callbacks.append(ProgressBar())
    if trainer["enable_model_summary"] is not False:
        callbacks.append(ModelLine())
    return callbacks


def loggers(chosen: Any, logging: LoggingConfig, folder: Path, resumed_step: int | None) -> Any:
    """Return the loggers of a run: the package's, or those of trainer.logger.

    Args:
        chosen: `trainer.logger`.
        logging: Settings of the package's loggers.
        folder: Folder of the run.
        resumed_step: Step at which the run resumes in its folder; None for a new run.

    Raises:
        ConfigError: If both are configured.
    """
    if chosen in (None, True):
        return build_loggers(logging, folder, resumed_step)
    if logging != LoggingConfig(pictures=logging.pictures):
        raise ConfigError(
            "the keys of logging but pictures have no effect with trainer.logger, which replaces its loggers; remove "
            "one of them."
        )
    return chosen


def check_callbacks(callbacks: list[pl.Callback], metrics: dict[str, Mode]) -> None:
    """Check the callbacks that a config adds; Lightning would reject them at the end of the first epoch only.

    Args:
        callbacks: The callbacks.
        metrics: Those of `selection_metrics`.

    Raises:
        ConfigError: If one takes functions, monitors a metric that no run of the package logs, or the worse end of one
            of held-out images.
    """
    for callback in callbacks:
        name, monitor = type(callback).__name__, getattr(callback, "monitor", None)
        if isinstance(callback, pl.callbacks.LambdaCallback):
            raise ConfigError(
                f"trainer.callbacks: {name} takes functions, which a config cannot hold; train from Python, or remove "
                "it."
            )
        reject_test_metric(f"trainer.callbacks.{name}.monitor", monitor)
        if monitor in metrics and monitor.startswith("val/"):
            check_mode(f"trainer.callbacks.{name}.mode", monitor, getattr(callback, "mode", "min"), metrics[monitor])
        if monitor is None or monitor in metrics or str(monitor).startswith(("train/", "collapse/", "data/")):
            continue
        options = either(["train/loss", "another train/... or collapse/... metric", *metrics])
        hint = "" if metrics else "; data.probe names no probe set"
        if str(monitor).startswith("val/") and not any(m.startswith("val/") for m in metrics):
            hint = "; data.holdout holds out no image"
        raise ConfigError(f"invalid `trainer.callbacks.{name}.monitor={monitor}`: must be {options}{hint}.")
