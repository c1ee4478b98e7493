"""What keeps and logs a run of training: checkpoints, config, clock, bar, loggers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from hjepa_pl.callbacks.clock import Clock
from hjepa_pl.callbacks.model_line import ModelLine
from hjepa_pl.callbacks.progress import Progress
from hjepa_pl.callbacks.runlog import RunLog
from hjepa_pl.outputs import (
    CheckpointConfig,
    LoggingConfig,
    SaveConfig,
    build_loggers,
    checkpoint_callbacks,
    probe_metrics,
)
from hjepa_pl.types import ConfigError


def of_training(
    trainer: dict[str, Any],
    checkpoint: CheckpointConfig,
    folder: Path,
    probes: list[str],
    save: SaveConfig,
    *,
    budgeted: bool,
) -> list[pl.Callback]:
    """Return the callbacks that a run of training has, probes left out.

    Args:
        trainer: The Trainer's keys.
        checkpoint: Which checkpoints are kept.
        folder: Of the run.
        probes: Names of the probe sets, the first of which ranks checkpoints.
        save: Writes the config.
        budgeted: Whether the run has a time budget.

    Raises:
        ConfigError: If checkpoints are asked for and switched off.
    """
    found: list[pl.Callback] = []
    if trainer["enable_checkpointing"] is not False:
        found += checkpoint_callbacks(checkpoint, folder.absolute() / "checkpoints", probes)
    elif checkpoint != CheckpointConfig():
        raise ConfigError("checkpoint does nothing with trainer.enable_checkpointing false; remove one of them.")
    found += [save, RunLog(str(folder))]
    if budgeted:
        found.append(Clock(str(folder)))
    if trainer["enable_progress_bar"] is not False:
        found.append(Progress())
    if trainer["enable_model_summary"] is not False:
        found.append(ModelLine())
    return found


def refuse_monitors(callbacks: Sequence[pl.Callback], probes: list[str]) -> None:
    """Refuse callbacks of the config that watch a metric that no validation gives: they would fail after it.

    Args:
        callbacks: Those of trainer.callbacks.
        probes: Names of the probe sets.

    Raises:
        ConfigError: Naming the metrics that there are.
    """
    there = probe_metrics(probes)
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and monitor not in (None, *there):
            raise ConfigError(
                f"invalid `trainer.callbacks`: {type(callback).__name__} monitors '{monitor}'; "
                + (f"take one of {', '.join(there)}." if there else "metrics to monitor come with data.probe; add one.")
            )


def loggers(asked: Any, logging: LoggingConfig, folder: Path, resumed: int | None) -> Any:
    """Return a run's loggers: ours, or what trainer.logger asks for.

    Args:
        asked: trainer.logger.
        logging: The keys of ours.
        folder: Of the run.
        resumed: The step from which the run goes on in its folder; None where it starts one.

    Raises:
        ConfigError: If keys are given for ours, and others asked for.
    """
    if asked in (None, True):
        return build_loggers(logging, folder, resumed)
    if logging != LoggingConfig():
        raise ConfigError("logging does nothing beside trainer.logger, which replaces its loggers; give one of them.")
    return asked
