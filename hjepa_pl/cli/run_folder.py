"""Folder of a run, results/<experiment_name>: its loggers, its config.yaml, and where an earlier run goes."""

import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer import Trainer

from hjepa_pl.callbacks.metrics_csv import MetricsCSV
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import settings
from hjepa_pl.utils.wording import as_typed


@settings("logging")
class LoggingConfig:
    """Loggers and pictures of a run in addition to metrics.csv and logs/train.log, which are always written."""

    pictures: bool = True
    """Draw masks, errors, features and attention to pictures/ at validations, in less than 1 % of the time."""
    tensorboard: bool = True
    """Write TensorBoard files to logs/tensorboard."""
    wandb: bool = False
    """Log to Weights & Biases (entity and key are read from the environment)."""
    wandb_mode: Literal["offline", "online"] = "offline"
    """Whether W&B uploads during the run; offline runs are uploaded by `wandb sync`."""
    wandb_project: str = "hjepa_pl"
    """Project of the W&B run."""
    wandb_group: str | None = None
    """Group of W&B runs that are shown together, the seeds of one config for example."""
    wandb_tags: list[str] | None = None
    """Tags of the W&B run."""
    wandb_notes: str | None = None
    """Notes of the W&B run."""

    def __post_init__(self) -> None:
        """Reject W&B's keys without W&B."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("wandb_") and value != field.default and not self.wandb:
                raise ConfigError(
                    f"invalid `logging.{field.name}={as_typed(value)}`: has no effect with logging.wandb=false; set "
                    "logging.wandb to true, or remove the key."
                )


def build_loggers(config: LoggingConfig, folder: Path, resumed_step: int | None) -> list[Logger]:
    """Return the loggers of a run.

    Args:
        config: The settings.
        folder: Folder of the run.
        resumed_step: Step at which the run resumes in its folder; None for a new run.
    """
    loggers: list[Logger] = [MetricsCSV(str(folder), resumed_step)]
    if config.tensorboard:
        loggers.append(TensorBoardLogger(folder / "logs", name="tensorboard", version=""))
    if config.wandb:
        loggers.append(_wandb(config, folder, resumed=resumed_step is not None))
    return loggers


def _wandb(config: LoggingConfig, folder: Path, *, resumed: bool) -> WandbLogger:
    """Return W&B's logger; a resumed run keeps its W&B id, which is the end of the name of its W&B folder."""
    earlier = sorted((folder / "logs" / "wandb").glob("*run-*-*")) if resumed else []
    run: dict[str, Any] = {"id": earlier[-1].name.rpartition("-")[2], "resume": "allow"} if earlier else {}
    return WandbLogger(
        name=folder.name, project=config.wandb_project, save_dir=folder / "logs", group=config.wandb_group,
        offline=config.wandb_mode == "offline", tags=config.wandb_tags, notes=config.wandb_notes, **run,
    )  # fmt: skip


def check_folder(folder: Path) -> None:
    """Check that the folder of a run can be written, before anything is moved or computed.

    Args:
        folder: Folder of the run; it and the folders above it need not exist.

    Raises:
        ConfigError: If the folder, or the nearest one above it that exists, is a file or cannot be written.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise ConfigError(
            f"results_dir/experiment_name {folder}: {existing} is a file; remove it, or choose another name."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            f"results_dir/experiment_name {folder}: the folder {existing} is read-only; make it writable, or "
            "set results_dir to another folder."
        )


def move_earlier_run(folder: Path) -> Path | None:
    """Move an earlier run's folder to the first free name with a number, so that nothing is overwritten.

    Returns:
        The new folder; None if there is no earlier run.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    number = 1
    while (moved := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    shutil.move(folder, moved)
    return moved


class SaveConfig(SaveConfigCallback):
    """Writes the whole config to results/<experiment_name>/config.yaml."""

    def __init__(self, *args: Any, folder: str, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"save_to_log_dir": False}))
        self.folder = Path(folder)

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Write the file on rank zero, for training runs only."""
        if stage == "fit":
            self.folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(
                self.config, self.folder / "config.yaml", skip_none=False, overwrite=True, multifile=self.multifile
            )
