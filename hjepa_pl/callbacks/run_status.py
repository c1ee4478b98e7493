"""Speed, progress and time left of a run, in the words of the progress bar and of train.log."""

import math
import sys
import time
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from hjepa_pl.utils.run_length import clock, steps_per_epoch, total_steps

_HIDDEN = ("/lr", "/weight_decay", "/momentum", "/grad_norm", "_weighted")
"""Ends of the names of metrics that are in metrics.csv only."""


def images_in(batch: Any) -> int:
    """Return the number of images of a `ViewBatch`; 0 for a batch without labels."""
    label = getattr(batch, "label", None)
    return 0 if label is None else len(label)


def is_logging_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return True if the module has just logged its metrics, so that reading them does not wait for the device."""
    # Once a step, not once for each accumulated batch.
    stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return stepped and trainer.global_step % every == 0


def logged(trainer: pl.Trainer, *prefixes: str) -> dict[str, float]:
    """Return the latest logged scalars whose names start with one of `prefixes`; waits for the device."""
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(prefixes) and value.numel() == 1
    }


def loss_terms(trainer: pl.Trainer) -> str:
    """Return the unweighted loss terms as text: "loss 0.641  last_c1 0.232"."""
    terms = {n: v for n, v in logged(trainer, "train/").items() if not n.endswith(_HIDDEN)}
    return "  ".join(f"{name.removeprefix('train/')} {value:.4g}" for name, value in terms.items())


def memory_of(device: torch.device) -> int | None:
    """Return the peak bytes that this process has allocated: on a GPU, or of main memory; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def callbacks_of(trainer: pl.Trainer, kind: type) -> list[Any]:
    """Return the trainer's callbacks of a class."""
    return [c for c in trainer.callbacks if isinstance(c, kind)]  # type: ignore[attr-defined]


class End(NamedTuple):
    """Estimated end of a run."""

    steps: int | None
    """Optimizer steps of the whole run; None if the time budget ends it sooner, or nothing known does."""
    seconds: float | None
    """Seconds left; None while the speed is unknown."""


class RunStatus:
    """Counts images and the seconds of training them, without pauses such as validation.

    Attributes:
        images: Number of images so far, those of all processes.
        rate: Images per second between the last two calls of `speed`; None before the first.
    """

    def __init__(self) -> None:
        self.images = 0
        self.rate: float | None = None
        self._first_step = 0
        self._seconds = 0.0
        self._since: float | None = None
        self._mark = (0, 0.0)

    def start(self, trainer: pl.Trainer) -> None:
        """Start the clock at the step where the run starts or resumes."""
        self._first_step = trainer.global_step
        self.resume()

    def resume(self) -> None:
        """Start or continue the clock."""
        if self._since is None:
            self._since = time.perf_counter()

    def pause(self) -> None:
        """Stop the clock."""
        self._seconds, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Seconds that the clock has run."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    def count(self, trainer: pl.Trainer, batch: Any) -> None:
        """Add the images of a batch, those of all ranks."""
        self.images += images_in(batch) * trainer.world_size

    # ----------------------------------------------------------------------------------------------------------- text

    def epoch(self, trainer: pl.Trainer, number: int) -> str:
        """Return "3/45" for `number` 2, the third of 45 epochs; "3" if the number of epochs is unknown."""
        steps, each = self.end(trainer).steps, steps_per_epoch(trainer)
        return f"{number + 1}" if steps is None or math.isinf(each) else f"{number + 1}/{math.ceil(steps / each)}"

    def step(self, trainer: pl.Trainer) -> str:
        """Return "10/30" after ten of 30 steps; "10" if the number of steps is unknown."""
        steps = self.end(trainer).steps
        return f"{trainer.global_step}" if steps is None else f"{trainer.global_step}/{steps}"

    def speed(self, trainer: pl.Trainer) -> str:
        """Return the speed since the last call and the time left: "296.1 images/s, 0:00:12 left"."""
        images, seconds = self.images - self._mark[0], self.seconds - self._mark[1]
        self._mark = (self.images, self.seconds)
        self.rate = images / seconds if seconds > 0 else 0.0
        left = self.end(trainer).seconds
        return f"{self.rate:.1f} images/s" + ("" if left is None else f", {clock(left)} left")

    def end(self, trainer: pl.Trainer) -> End:
        """Return the end of the run at its mean speed so far: its last step, or its time budget.

        A budget is `module.progress` with `budget` and `seconds`.
        """
        progress = getattr(trainer.lightning_module, "progress", None)
        total, done = total_steps(trainer), trainer.global_step - self._first_step
        steps = None if math.isinf(total) else int(total)
        by_steps = (total - trainer.global_step) * self.seconds / done if done > 0 else math.inf
        if getattr(progress, "budget", None) is None:
            return End(steps, None if math.isinf(by_steps) else max(0.0, by_steps))
        left = max(0.0, progress.budget - progress.seconds)  # type: ignore[union-attr]
        # At the very end both are nearly 0; then the steps count, which are done.
        return End(steps, max(0.0, by_steps)) if by_steps <= left else End(None, left)
