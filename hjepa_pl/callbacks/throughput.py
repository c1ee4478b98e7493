"""How fast a run goes and how far it is: shared by the log and the progress bar."""

import math
import time
from typing import Any, NamedTuple

import lightning.pytorch as pl

from hjepa_pl.utils.run_length import total_steps


def images_in(batch: Any) -> int:
    """Return the number of images of a `ViewBatch` (0 for anything without labels)."""
    label = getattr(batch, "label", None)
    return 0 if label is None else len(label)


def is_logging_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Return whether the module has just logged its figures, so that reading them costs no extra wait."""
    # The step count stands still in between accumulated batches: one line a step, not one a batch.
    stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return stepped and trainer.global_step % every == 0


class End(NamedTuple):
    """What ends a run, as far as its speed tells."""

    steps: int | None
    """Optimizer steps of the whole run; None if the clock ends it sooner, or it is not known what does."""
    seconds: float | None
    """Seconds until then; None while the speed is unknown."""


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

    def end(self, trainer: pl.Trainer, first_step: int) -> End:
        """Return what ends the run, at the mean speed since `first_step`: its last step, or its time budget.

        A budget is `module.progress` with `budget` and `seconds`.
        """
        progress = getattr(trainer.lightning_module, "progress", None)
        total, done = total_steps(trainer), trainer.global_step - first_step
        steps = None if math.isinf(total) else int(total)
        by_steps = (total - trainer.global_step) * self.seconds / done if done > 0 else math.inf
        if getattr(progress, "budget", None) is None:
            return End(steps, None if math.isinf(by_steps) else max(0.0, by_steps))
        left = max(0.0, progress.budget - progress.seconds)  # type: ignore[union-attr]
        # At the very end both are near nothing, and the steps that are done are what ended it.
        return End(steps, max(0.0, by_steps)) if by_steps <= left else End(None, left)
