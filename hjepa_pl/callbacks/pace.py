"""How fast a run goes and how far it is: shared by the log and the progress bar."""

import time
from typing import Any

import lightning.pytorch as pl


def images_in(batch: Any) -> int:
    """Return the number of images of a `ViewBatch` (0 for anything without labels)."""
    label = getattr(batch, "label", None)
    return 0 if label is None else len(label)


def total_steps(trainer: pl.Trainer) -> int | None:
    """Return the optimizer steps of the whole run, or None when nothing bounds it.

    `trainer.estimated_stepping_batches` would give it too, but reading that before the loaders are made loses their
    state on a resume (Lightning issue 20550).
    """
    limits = []
    if trainer.max_steps > 0:
        limits.append(trainer.max_steps)
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and 0 < batches < float("inf"):
        limits.append(-(-int(batches) // trainer.accumulate_grad_batches) * trainer.max_epochs)
    return min(limits) if limits else None


def is_logging_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether the module has just logged its figures, so that reading them costs no extra wait."""
    # The step count stands still in between accumulated batches: one line a step, not one a batch.
    stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return stepped and trainer.global_step % every == 0


def clock(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Pace:
    """Counts images and the seconds spent on training them, leaving out pauses such as validation."""

    def __init__(self) -> None:
        self.images = 0
        self._seconds = 0.0
        self._since: float | None = None
        self._mark = (0, 0.0)

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

    def count(self, images: int) -> None:
        """Add the images of one batch (over all ranks)."""
        self.images += images

    @property
    def mean_rate(self) -> float:
        """Images a second since the start."""
        return self.images / self.seconds if self.seconds > 0 else 0.0

    def recent_rate(self) -> float:
        """Return images a second since the last call."""
        images, seconds = self.images - self._mark[0], self.seconds - self._mark[1]
        self._mark = (self.images, self.seconds)
        return images / seconds if seconds > 0 else 0.0

    def remaining(self, trainer: pl.Trainer, first_step: int) -> float | None:
        """Return the seconds left at the mean speed since `first_step`, or None when that is unknown.

        A time budget (`module.progress` with `budget` and `seconds`) ends the run when it is spent, if not before.
        """
        limits = []
        total, done = total_steps(trainer), trainer.global_step - first_step
        if total is not None and done > 0:
            limits.append((total - trainer.global_step) * self.seconds / done)
        progress = getattr(trainer.lightning_module, "progress", None)
        if getattr(progress, "budget", None) is not None:
            limits.append(progress.budget - progress.seconds)  # type: ignore[union-attr]
        return max(0.0, min(limits)) if limits else None
