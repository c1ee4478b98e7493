"""`logs/train.log` and `logs/status.json`: what a run is doing, to be read while it trains."""

import json
import math
import time
from pathlib import Path
from typing import Any, TextIO

import lightning.pytorch as pl

from hjepa_pl.callbacks.collapse_monitor import CollapseMonitor
from hjepa_pl.callbacks.probe_callback import ProbeCallback
from hjepa_pl.callbacks.provenance import device_name, versions
from hjepa_pl.callbacks.run_status import RunStatus, callbacks_of, is_logging_step, logged, loss_terms, memory_of
from hjepa_pl.utils.atomic_file import atomic_write
from hjepa_pl.utils.run_length import clock, total_steps


class TrainLog(pl.Callback):
    """Write `logs/train.log` and `logs/status.json`, on rank zero only.

    The log has one line every `trainer.log_every_n_steps` steps (epoch, step, loss terms, learning rate, images/s, time
    left), one per validation, and one for the start and for collapse. Each is on disk at once; a resumed run appends to
    the file. The status is what `hjepa monitor` shows besides the metrics: progress, speed, memory, probes' baselines.

    Args:
        directory: Folder of the run.
    """

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self._file: TextIO | None = None
        self._status = RunStatus()
        self._collapse = ""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Reset the clock."""
        self._status = RunStatus()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the length of the run, its device and the versions of the packages."""
        self._status.start(trainer)
        verb = f"resumed at step {trainer.global_step}" if trainer.global_step else "started"
        budget = getattr(getattr(pl_module, "progress", None), "budget", None)
        total = total_steps(trainer)
        length = [] if math.isinf(total) else [f"{total:.0f} steps"]
        length += [] if budget is None else [clock(budget)]
        processes = "1 process" if trainer.world_size == 1 else f"{trainer.world_size} processes"
        packages = ", ".join(f"{name} {version}" for name, version in versions().items())
        self.write(
            trainer,
            f"{verb}: {' or '.join(length) or 'unlimited'}, {processes} on {device_name(trainer)}, {packages}",
        )
        self._write_status(trainer, "training")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images; write a line on logging steps."""
        self._status.count(trainer, batch)
        if not trainer.is_global_zero or not is_logging_step(trainer, batch_idx):
            return
        collapse = next((c.message for c in callbacks_of(trainer, CollapseMonitor)), "")
        if collapse and not self._collapse:
            self.write(trainer, collapse)
        self._collapse = collapse
        parts = [
            f"epoch {self._status.epoch(trainer, trainer.current_epoch)}",
            f"step {self._status.step(trainer)}",
            loss_terms(trainer) or f"loss {float(outputs['loss']):.4g}",
            f"lr {float(trainer.optimizers[0].param_groups[0]['lr']):.3g}",
            *(f"grad_norm {value:.3g}" for value in logged(trainer, "train/grad_norm").values()),
            self._status.speed(trainer),
        ]
        self.write(trainer, "  ".join(parts))
        self._write_status(trainer, "training")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the training clock."""
        self._status.pause()
        if trainer.state.fn == "fit":
            self._write_status(trainer, "first validation" if trainer.sanity_checking else "validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the metrics of the validation; continue the training clock."""
        if trainer.state.fn != "fit":
            return
        if trainer.sanity_checking:
            metrics = dict(next((c.results for c in callbacks_of(trainer, ProbeCallback)), {}))
            title = "before training"
        else:
            self._status.resume()
            self._write_status(trainer, "training")
            metrics = logged(trainer, "probe/", "val/")
            title = f"epoch {self._status.epoch(trainer, trainer.current_epoch)} validation"
        # The probes' penalties are in metrics.csv only.
        shown = [f"{name} {value:.2f}" for name, value in metrics.items() if "/linear_l2" not in name]
        if shown:
            self.write(trainer, "  ".join([title, *shown]))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write_status(self, trainer: pl.Trainer, doing: str) -> None:
        """Write what the metrics do not tell."""
        if not trainer.is_global_zero:
            return
        end = self._status.end(trainer)
        probes: dict[str, float] = next((c.results for c in callbacks_of(trainer, ProbeCallback)), {})
        status = {
            "doing": doing,
            "epoch": self._status.epoch(trainer, trainer.current_epoch),
            "step": trainer.global_step,
            "steps": end.steps,
            "seconds": getattr(getattr(trainer.lightning_module, "progress", None), "seconds", self._status.seconds),
            "seconds_left": end.seconds,
            "images_per_second": self._status.rate,
            "memory": memory_of(trainer.strategy.root_device),
            "warning": self._collapse,
            "baselines": {
                name: value
                for name, value in probes.items()
                if ("/untrained_" in name or "/pixels_" in name) and math.isfinite(value)
            },
        }
        with atomic_write(self.directory / "logs" / "status.json", sync=False) as file:
            file.write(json.dumps(status) + "\n")

    def write(self, trainer: pl.Trainer, line: str) -> None:
        """Append a line with the time of day, on rank zero."""
        if not trainer.is_global_zero:
            return
        if self._file is None:
            path = self.directory / "logs" / "train.log"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", buffering=1, encoding="utf-8")
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
        self._file.flush()
