"""`summary.json`: the result of a run, written when it ends."""

import contextlib
import json
import math
import os
import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from hjepa_pl.callbacks.collapse_monitor import CollapseMonitor
from hjepa_pl.callbacks.probe_callback import ProbeCallback
from hjepa_pl.callbacks.probe_table import best_checkpoint, online_is_better, worse_than_untrained
from hjepa_pl.callbacks.provenance import device_name, git_hash, versions
from hjepa_pl.callbacks.run_status import RunStatus, callbacks_of, is_logging_step, logged
from hjepa_pl.callbacks.train_log import TrainLog
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.atomic_file import atomic_write
from hjepa_pl.utils.distributed import PEER_ENDED, peer_ended
from hjepa_pl.utils.run_length import clock

_DIVERGED = 2.0
"""A run has diverged if its loss ends above this multiple of the untrained network's loss."""
_LAST = 5
"""Number of logged losses at the end of a run whose median is compared."""


class RunSummary(pl.Callback):
    """Write `summary.json`, on rank zero only, when a run ends, also after an exception or Ctrl-C.

    `status` is "completed", "diverged" (the loss ends at more than twice that of the untrained network), "stopped"
    (collapse monitor or early stopping), "interrupted" or "failed".

    Args:
        directory: Folder of the run.
        train_log: Gets the last line of the run.
    """

    def __init__(self, directory: str, train_log: TrainLog | None = None) -> None:
        self.directory = Path(directory)
        self.train_log = train_log
        self._status = RunStatus()
        self._earlier = {"train_seconds": 0.0, "seconds": 0.0, "images": 0}
        self._began: float | None = None
        self._from_scratch = False
        self._first_loss: float | None = None
        self._last_losses: deque[float] = deque(maxlen=_LAST)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the clock of the whole run, sanity check included."""
        if stage == "fit":
            self._status, self._began = RunStatus(), time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the training clock."""
        self._status.start(trainer)
        self._from_scratch = trainer.global_step == 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images; keep the first loss and the last ones."""
        self._status.count(trainer, batch)
        if not trainer.is_global_zero:
            return
        if self._first_loss is None and self._from_scratch:
            # Lightning passes the loss of each accumulated batch, divided by their number.
            self._first_loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        if is_logging_step(trainer, batch_idx):
            losses = logged(trainer, "train/loss")
            self._last_losses.append(losses.get("train/loss", float(outputs["loss"])))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the training clock."""
        self._status.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue the training clock."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._status.resume()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the summary of a run that reached its end."""
        stopped = any(c.stopped for c in callbacks_of(trainer, CollapseMonitor))
        stopped = stopped or any(c.stopped_epoch > 0 for c in callbacks_of(trainer, pl.callbacks.EarlyStopping))
        diverged = self._diverged()
        if diverged:
            rank_zero_warn(diverged)
        self._finish(trainer, "stopped" if stopped else "diverged" if diverged else "completed", diverged)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the summary of a run that failed or was interrupted."""
        if self._began is None or (isinstance(exception, ConfigError) and not self._status.images):
            return  # nothing was trained; the summary of an earlier run stays
        interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        self._finish(trainer, "interrupted" if interrupted else "failed", exception=exception)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stop the clock of the whole run."""
        self._began = None

    def state_dict(self) -> dict[str, Any]:
        """Return seconds and images so far, so that the summary of a resumed run covers all of it."""
        return self._spent() | {"first_loss": self._first_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the seconds and images of the resumed run."""
        self._earlier = dict(state_dict)
        self._first_loss = self._earlier.pop("first_loss", None)

    # -------------------------------------------------------------------------------------------------------- summary

    def _diverged(self) -> str:
        """Return a sentence if the run has diverged, else an empty string.

        A loss may rise for a while, as targets get richer, but a network that has learned anything does not have twice
        the loss of the untrained one.
        """
        last = statistics.median(self._last_losses) if self._last_losses else math.nan
        if self._first_loss is None or not last > _DIVERGED * self._first_loss > 0:
            return ""
        return (
            f"Diverged: the loss ends at {last:.3g} and was {self._first_loss:.3g} before the first step, so the "
            "network is worse than an untrained one; lower optimizer.lr, or set trainer.gradient_clip_val."
        )

    def _spent(self) -> dict[str, Any]:
        now = 0.0 if self._began is None else time.perf_counter() - self._began
        return {
            "train_seconds": self._earlier["train_seconds"] + self._status.seconds,
            "seconds": self._earlier["seconds"] + now,
            "images": self._earlier["images"] + self._status.images,
        }

    def _finish(self, trainer: pl.Trainer, status: str, note: str = "", exception: BaseException | None = None) -> None:
        self._status.pause()
        if not trainer.is_global_zero:
            return
        spent = self._spent()
        progress = getattr(trainer.lightning_module, "progress", None)
        if progress is not None:
            spent["seconds"] = progress.seconds  # the clock of the time budget, which includes the start-up
        rate = spent["images"] / spent["train_seconds"] if spent["train_seconds"] > 0 else 0.0
        error = None if exception is None else _one_line(exception)
        summary = {
            "status": status,
            "error": error,
            **_results(trainer, note),
            "bad_files": _lines(self.directory / "bad_files.txt"),
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            **spent,
            "images_per_second": rate,
            "seed": _seed(trainer),
            "device": device_name(trainer),
            "world_size": trainer.world_size,
            "precision": str(trainer.precision),
            "versions": versions(),
            "git": git_hash(),
        }
        with atomic_write(self.directory / "summary.json") as file:
            file.write(json.dumps(_finite(summary), indent=2, allow_nan=False) + "\n")
        if self.train_log is not None:
            reason = f": {error or note}" if error or note else ""
            self.train_log.write(
                trainer,
                f"{status} at step {trainer.global_step} after {clock(spent['seconds'])} "
                f"({clock(spent['train_seconds'])} of training, {rate:.1f} images/s){reason}",
            )


def _results(trainer: pl.Trainer, note: str) -> dict[str, Any]:
    """Return the entries of a summary about the model: the last training metrics, the probes' results, collapse."""
    probes: dict[str, float] = {}
    for callback in callbacks_of(trainer, ProbeCallback):
        probes.update(callback.results)
    monitor = next(iter(callbacks_of(trainer, CollapseMonitor)), None)
    best = best_checkpoint(trainer)
    others = {name: value for name, value in logged(trainer, "").items() if not name.startswith("probe/")}
    return {
        "metrics": others | probes,
        "evaluated": next((c.judged for c in callbacks_of(trainer, ProbeCallback)), None),
        "best": None if best is None else best._asdict(),
        "notes": [*([note] if note else []), *worse_than_untrained(probes), *online_is_better(probes)],
        "collapse": None if monitor is None else {"status": monitor.status, "message": monitor.message},
    }


def _seed(trainer: pl.Trainer) -> int | None:
    """Return the seed of `seed_everything`, or that of the data."""
    text = os.environ.get("PL_GLOBAL_SEED")
    if text is not None:
        return int(text)
    return getattr(getattr(trainer, "datamodule", None), "seed", None)


def _finite(value: Any) -> Any:
    """Return a record with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(path: Path) -> int:
    """Return the number of lines of a file, 0 if there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _one_line(exception: BaseException) -> str:
    text = ""
    with contextlib.suppress(Exception):
        if peer_ended(exception):
            return PEER_ENDED
        text = " ".join(str(exception).split())[:500]
    return f"{type(exception).__name__}: {text}" if text else type(exception).__name__
