"""Where a run's files lie, and what writes them: results/<experiment_name>/{checkpoints,logs}."""

import os
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer import Trainer

from hjepa_pl.callbacks.metrics_csv import MetricsCSV
from hjepa_pl.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where metrics go, beside metrics.csv and logs/train.log, which are always written."""

    tensorboard: bool = True
    """Write TensorBoard files to logs/tensorboard."""
    wandb: bool = False
    """Log to Weights & Biases (entity and key from the environment)."""
    wandb_mode: Literal["offline", "online"] = "offline"
    """Whether W&B uploads while the run goes on; offline runs are uploaded by `wandb sync`."""
    wandb_project: str = "hjepa_pl"
    """W&B's project."""
    wandb_group: str | None = None
    """Group of runs that W&B shows together, the seeds of one config for example."""
    wandb_tags: list[str] | None = None
    """Tags of the W&B run."""
    wandb_notes: str | None = None
    """Notes of the W&B run."""

    def __post_init__(self) -> None:
        """Refuse W&B's keys without W&B."""
        given = [
            field.name
            for field in fields(self)
            if field.name.startswith("wandb_") and getattr(self, field.name) != field.default
        ]
        if given and not self.wandb:
            raise ConfigError(f"logging.{given[0]} does nothing without logging.wandb true; set it.")


def build_loggers(config: LoggingConfig, folder: Path, resumed_step: int | None) -> list[Logger]:
    """Return the loggers of a run; metrics.csv goes on where an earlier one ended."""
    loggers: list[Logger] = [MetricsCSV(str(folder), resumed_step)]
    if config.tensorboard:
        loggers.append(TensorBoardLogger(folder / "logs", name="tensorboard", version=""))
    if config.wandb:
        loggers.append(_wandb(config, folder, resumed=resumed_step is not None))
    return loggers


def _wandb(config: LoggingConfig, folder: Path, *, resumed: bool) -> WandbLogger:
    """Return W&B's logger; a run that goes on is the same one for W&B, whose id is the end of its folder's name."""
    earlier = sorted((folder / "logs" / "wandb").glob("*run-*-*")) if resumed else []
    run: dict[str, Any] = {"id": earlier[-1].name.rpartition("-")[2], "resume": "allow"} if earlier else {}
    return WandbLogger(
        name=folder.name, project=config.wandb_project, save_dir=folder / "logs", group=config.wandb_group,
        offline=config.wandb_mode == "offline", tags=config.wandb_tags, notes=config.wandb_notes, **run,
    )  # fmt: skip


def refuse_folder(folder: Path) -> None:
    """Refuse a place where no run could be kept, before anything is moved or computed.

    Args:
        folder: Of the run; it need not be there yet, nor the folders that it lies in.

    Raises:
        ConfigError: If it, or what it would be made in, is no folder or cannot be written.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise ConfigError(f"results_dir/experiment_name {folder}: {there} is a file; remove it, or take another name.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"results_dir/experiment_name {folder}: the folder {there} is read-only; let it be written, or set "
            "results_dir to another."
        )


def set_aside(folder: Path) -> Path | None:
    """Move an earlier run's folder to the first free name with a number, so that nothing is overwritten."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    shutil.move(folder, aside)
    return aside


class SaveConfig(SaveConfigCallback):
    """Writes the whole configuration to results/<experiment_name>/config.yaml."""

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
