"""What stays of a run: `logs/train.log`, readable while it trains, and `summary.json`, written when it ends."""

import contextlib
import math
import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from hjepa_pl.callbacks.collapse_monitor import CollapseMonitor
from hjepa_pl.callbacks.probe_callback import ProbeCallback
from hjepa_pl.callbacks.probe_table import best_checkpoint, online_is_better, worse_than_untrained
from hjepa_pl.callbacks.provenance import device_name, git_hash, seed, versions, write_json
from hjepa_pl.callbacks.throughput import Pace, images_in, is_logging_step
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.distributed import PEER_ENDED, peer_ended
from hjepa_pl.utils.run_length import clock, total_steps

_DIVERGED = 2.0
"""How many times the loss of the untrained network the last losses may be."""
_LAST = 5
"""How many logged losses at the end of a run are looked at."""


class RunLog(pl.Callback):
    """Write the run's log and summary, on rank zero only.

    `train.log` gets one line every `trainer.log_every_n_steps` steps (epoch, step, losses, learning rate, images/s,
    time left), one a validation, and one for start, end, exception and collapse; each is on disk at once, and a resumed
    run goes on with the same file. `summary.json` is written in one piece at the end, also after an exception or
    Ctrl-C: `status` is "completed", "diverged" (its loss ends at twice that of the untrained network or more),
    "stopped" (collapse monitor or early stopping), "interrupted" or "failed".

    Args:
        directory: Folder of the run.
    """

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self._file: TextIO | None = None
        self._pace = Pace()
        self._earlier = {"train_seconds": 0.0, "seconds": 0.0, "images": 0}
        self._began: float | None = None
        self._first_step = 0
        self._verdict = ""
        self._first_loss: float | None = None
        self._last_losses: deque[float] = deque(maxlen=_LAST)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the clock of the whole run, sanity check included."""
        if stage == "fit":
            self._pace, self._began = Pace(), time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write where the run starts or goes on."""
        self._first_step = trainer.global_step
        self._pace.resume()
        verb = f"resumed at step {trainer.global_step}" if trainer.global_step else "started"
        budget = getattr(getattr(pl_module, "progress", None), "budget", None)
        total = total_steps(trainer)
        length = [] if math.isinf(total) else [f"{total:.0f} steps"]
        length += [] if budget is None else [clock(budget)]
        self._write(
            trainer,
            f"{verb}: {' or '.join(length) or 'no end known'}, {device_name(trainer)} x {trainer.world_size}, "
            f"{_version_line()}",
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images; write a line on logging steps."""
        self._pace.count(images_in(batch) * trainer.world_size)
        if trainer.is_global_zero and self._first_loss is None and not self._first_step:
            # Lightning hands on each micro-batch's share of the loss.
            self._first_loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        if not trainer.is_global_zero or not is_logging_step(trainer, batch_idx):
            return
        verdict = next((c.verdict for c in _all(trainer, CollapseMonitor)), "")
        if verdict and not self._verdict:
            self._write(trainer, verdict)
        self._verdict = verdict
        losses = _figures(trainer, "train/") or {"loss": float(outputs["loss"])}
        self._last_losses.append(losses.get("loss", math.nan))
        end = self._pace.end(trainer, self._first_step)
        of = "" if end.steps is None else f"/{end.steps}"
        parts = [f"epoch {trainer.current_epoch}", f"step {trainer.global_step}{of}"]
        parts += [f"{name} {value:.4g}" for name, value in losses.items()]
        if "lr" not in losses:
            parts.append(f"lr {float(trainer.optimizers[0].param_groups[0]['lr']):.3g}")
        left = "?" if end.seconds is None else clock(end.seconds)
        parts.append(f"{self._pace.recent_rate():.1f} images/s, {left} left")
        self._write(trainer, "  ".join(parts))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the training clock."""
        self._pace.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the figures of the validation; let the training clock run again."""
        if trainer.state.fn != "fit":
            return
        if trainer.sanity_checking:
            figures = dict(next((c.results for c in _all(trainer, ProbeCallback)), {}))
        else:
            self._pace.resume()
            figures = _figures(trainer, "probe/", "val/")
        # A line for people: the penalties are in metrics.csv.
        figures = {name: value for name, value in figures.items() if "/linear_l2" not in name}
        if figures:
            where = "before training" if trainer.sanity_checking else f"epoch {trainer.current_epoch} validation"
            self._write(trainer, "  ".join([where, *(f"{name} {value:.2f}" for name, value in figures.items())]))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the summary of a run that reached its end."""
        stopped = any(c.stopped for c in _all(trainer, CollapseMonitor))
        stopped = stopped or any(c.stopped_epoch > 0 for c in _all(trainer, pl.callbacks.EarlyStopping))
        diverged = self._diverged()
        if diverged:
            rank_zero_warn(diverged)
        self._finish(trainer, "stopped" if stopped else "diverged" if diverged else "completed", diverged)

    def _diverged(self) -> str:
        """Return what is wrong with the end of the loss, or an empty string.

        A loss may well rise for a while, as targets get richer, but a network that has learned anything is not twice as
        bad as none: the first loss is that of the untrained one, before its first step.
        """
        last = statistics.median(self._last_losses) if self._last_losses else math.nan
        if self._first_loss is None or not last > _DIVERGED * self._first_loss > 0:
            return ""
        return (
            f"Diverged: the loss ends at {last:.3g} and was {self._first_loss:.3g} before the first step, so that the "
            "network is worse than an untrained one; lower optimizer.lr, or set trainer.gradient_clip_val."
        )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write the summary of a run that did not."""
        if self._began is None or (isinstance(exception, ConfigError) and not self._pace.images):
            return  # nothing ran: a refused setting says so itself, and an earlier summary stays true
        interrupted = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        self._finish(trainer, "interrupted" if interrupted else "failed", exception=exception)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the log."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._began = None

    def state_dict(self) -> dict[str, Any]:
        """Return seconds and images so far, so that the summary of a resumed run covers all of it."""
        return self._spent() | {"first_loss": self._first_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the seconds and images of the run that is resumed."""
        self._earlier = dict(state_dict)
        self._first_loss = self._earlier.pop("first_loss", None)

    def _spent(self) -> dict[str, Any]:
        now = 0.0 if self._began is None else time.perf_counter() - self._began
        return {
            "train_seconds": self._earlier["train_seconds"] + self._pace.seconds,
            "seconds": self._earlier["seconds"] + now,
            "images": self._earlier["images"] + self._pace.images,
        }

    def _finish(self, trainer: pl.Trainer, status: str, note: str = "", exception: BaseException | None = None) -> None:
        self._pace.pause()
        if not trainer.is_global_zero:
            return
        spent = self._spent()
        progress = getattr(trainer.lightning_module, "progress", None)
        if progress is not None:
            spent["seconds"] = progress.seconds  # one clock: what a budget counts, the process' start included
        rate = spent["images"] / spent["train_seconds"] if spent["train_seconds"] > 0 else 0.0
        probes: dict[str, float] = {}
        for callback in _all(trainer, ProbeCallback):
            probes.update(callback.results)
        monitor = next(iter(_all(trainer, CollapseMonitor)), None)
        summary = {
            "status": status,
            "error": None if exception is None else _one_line(exception),
            "metrics": {**_figures(trainer, "", keep_prefix=True), **probes},
            "judged": next((c.evaluated for c in _all(trainer, ProbeCallback)), None),
            "best": None if (best := best_checkpoint(trainer)) is None else best._asdict(),
            "notes": [*([note] if note else []), *worse_than_untrained(probes), *online_is_better(probes)],
            "collapse": None if monitor is None else {"status": monitor.status, "verdict": monitor.verdict},
            "bad_files": _lines(self.directory / "bad_files.txt"),
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            **spent,
            "images_per_second": rate,
            "seed": seed(trainer),
            "device": device_name(trainer),
            "world_size": trainer.world_size,
            "precision": str(trainer.precision),
            "versions": versions(),
            "git": git_hash(),
        }
        write_json(self.directory / "summary.json", summary)
        reason = f": {summary['error']}" if exception is not None else f": {note}" if note else ""
        self._write(
            trainer,
            f"{status} at step {trainer.global_step} after {clock(spent['seconds'])} "
            f"({clock(spent['train_seconds'])} of training, {rate:.1f} images/s){reason}",
        )

    def _write(self, trainer: pl.Trainer, line: str) -> None:
        if not trainer.is_global_zero:
            return
        if self._file is None:
            path = self.directory / "logs" / "train.log"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", buffering=1, encoding="utf-8")
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
        self._file.flush()


def _figures(trainer: pl.Trainer, *prefixes: str, keep_prefix: bool = False) -> dict[str, float]:
    """Return the scalars that were logged under some prefixes; waits for the device, so only on logging steps."""
    found = {}
    for name, value in trainer.callback_metrics.items():
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if prefix is not None and value.numel() == 1:
            short = name if keep_prefix or prefix == "probe/" else name.removeprefix(prefix)
            found[short] = float(value)
    return {k: v for k, v in found.items() if keep_prefix or not math.isinf(v)}


def _lines(path: Path) -> int:
    """Return the number of lines of a file, 0 if there is none."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _all(trainer: pl.Trainer, kind: type) -> list[Any]:
    return [c for c in trainer.callbacks if isinstance(c, kind)]  # type: ignore[attr-defined]


def _one_line(exception: BaseException) -> str:
    text = ""
    with contextlib.suppress(Exception):
        if peer_ended(exception):
            return PEER_ENDED
        text = " ".join(str(exception).split())[:500]
    return f"{type(exception).__name__}: {text}" if text else type(exception).__name__


def _version_line() -> str:
    return ", ".join(f"{name} {version}" for name, version in versions().items())
