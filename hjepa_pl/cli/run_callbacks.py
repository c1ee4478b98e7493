"""What keeps and logs a run of training: checkpoints, config, clock, bar, loggers."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from hjepa_pl.callbacks.budget_clock import Clock
from hjepa_pl.callbacks.model_line import ModelLine
from hjepa_pl.callbacks.progress_bar import ProgressBar
from hjepa_pl.callbacks.runlog import RunLog
from hjepa_pl.callbacks.selection import reject_test_metric, selection_metrics
from hjepa_pl.cli.checkpoints import CheckpointConfig, checkpoint_callbacks
from hjepa_pl.cli.run_folder import LoggingConfig, SaveConfig, build_loggers
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
        found.append(ProgressBar())
    if trainer["enable_model_summary"] is not False:
        found.append(ModelLine())
    return found


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


def refuse_callbacks(callbacks: list[pl.Callback], probes: list[str]) -> None:
    """Refuse callbacks of a config that could not do their work: Lightning would say so at the first epoch's end.

    Args:
        callbacks: The config's own.
        probes: Names of the probe sets.

    Raises:
        ConfigError: If one takes functions, or watches a metric that no run of the package logs.
    """
    figures = selection_metrics(probes)
    for callback in callbacks:
        name, monitor = type(callback).__name__, getattr(callback, "monitor", None)
        if isinstance(callback, pl.callbacks.LambdaCallback):
            raise ConfigError(
                f"trainer.callbacks: {name} takes functions, which no config can hold; train from Python, or remove it."
            )
        reject_test_metric(f"trainer.callbacks: {name}.monitor", monitor)
        if monitor is None or monitor in figures or str(monitor).startswith(("train/", "collapse/", "data/")):
            continue
        raise ConfigError(
            f"trainer.callbacks: {name}.monitor '{monitor}' is logged by nothing; take train/loss, another train/..., "
            f"collapse/..., {', '.join(figures) or 'or a figure of a probe set, of which data.probe names none'}."
        )
