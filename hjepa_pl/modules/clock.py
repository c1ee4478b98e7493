"""The clock of a run: what a time budget has left, and what its end will take."""

import math
from typing import Any

import lightning.pytorch as pl

from hjepa_pl.optim.budget import Pace, RunProgress, parse_duration
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.distributed import from_rank_zero
from hjepa_pl.utils.run_length import end_after_step

_SELDOM = 20
"""Optimizer steps between two words of rank zero's clock, where the end is not near."""


class RunClock(pl.LightningModule):
    """Times what a run does beside its steps, and keeps one clock for all ranks and over resumes."""

    def __init__(self, time_budget: str | None) -> None:
        super().__init__()
        self.budget = None if time_budget is None else parse_duration(time_budget)
        self.progress = RunProgress(math.inf, self.budget)
        self.clock: dict[str, float] = {}
        """`started` and `spent` of the next run's `RunProgress`, where its caller knows them."""
        self._validation_began = 0.0
        self._epoch_ended: float | None = None
        self._limit_val_batches: int | float = 1.0
        self._said, self._said_at, self._say_at = Pace(0.0, math.inf, math.inf), 0, 0
        """What rank zero's clock said last, at which step, and at which it is to be heard again."""

    def configure_callbacks(self) -> list[pl.Callback]:
        """Start the clock: this is the first hook of a run, before data is fetched or the untrained network judged."""
        self.progress = RunProgress(math.inf, self.budget, **self.clock)
        self.clock, self._epoch_ended = {}, None
        return []

    def begin_steps(self, total: float) -> None:
        """Fix the length of the run, in optimizer steps; from here on its steps are timed.

        Raises:
            ConfigError: If the budget has no time for a step.
        """
        self.progress.total_steps = total
        refusal = self.agreed(self.progress.refusal())
        if refusal is not None:
            raise ConfigError(refusal)
        self._limit_val_batches = self.trainer.limit_val_batches
        self._pause_ended()

    def end_step(self, share: float, room: bool) -> None:
        """Time a step, and let the run end after the one at share 1 of it.

        Args:
            share: Of the run that is done, by the step that has just been made.
            room: Whether a validation fits before the last step.
        """
        self.progress.step_ended()
        if share >= 1.0:
            end_after_step(self.trainer)
        if self.budget is not None:
            # A validation that would cross the bell gives way to training and the last one.
            self.trainer.limit_val_batches = self._limit_val_batches if room or share >= 1.0 else 0

    def agreed(self, value: Any) -> Any:
        """Return rank zero's value on every rank: a budget has one clock, or weights and numbers of steps part."""
        return value if self.budget is None or self.trainer.world_size == 1 else self.trainer.strategy.broadcast(value)

    def pace(self) -> Pace:
        """Return what the clock says of the step that is about to run, the same on every rank.

        To hear of rank zero's clock, ranks wait for one another. They do so seldom, and count steps between: on to at
        most half way to the end, so that steps may come to take twice as long and the run still ends in its budget.
        """
        if self.budget is None or self.trainer.world_size == 1:
            return self.progress.pace()
        step = self.trainer.global_step
        if step >= self._say_at:
            mine = self.progress.pace() if self.trainer.is_global_zero else Pace(0.0, 0.0, 0.0)
            self._said, self._said_at = Pace(*from_rank_zero(mine, self.device)), step
            left = self._said.left
            self._say_at = step + (1 if math.isinf(left) else min(_SELDOM, max(1, int(left / 2))))
        pace = self._said.later(step - self._said_at)
        self.progress.done = pace.share
        return pace

    def _pause_ended(self) -> None:
        """Time the next step from here; what the pause took is yet to be heard of."""
        self.progress.pause_ended()
        self._say_at = 0

    # -------------------------------------------------------------------------------------------- what is no step

    def on_validation_start(self) -> None:
        """Time the validation, its loaders' start included: the last one has to fit in the budget."""
        super().on_validation_start()
        now = self.progress.seconds
        mark = None if self.trainer.sanity_checking else self.progress.mark
        self._validation_began = now if mark is None else mark

    def on_validation_end(self) -> None:
        """Keep back from the budget what a validation takes."""
        took = self.progress.seconds - self._validation_began
        if self.trainer.sanity_checking:
            self.progress.rehearsal = took
        else:
            self.progress.validation_ended(took)
            self._pause_ended()

    def on_train_epoch_end(self) -> None:
        """Time the end of an epoch: checkpoints are written after this hook and before the next epoch's first."""
        self._epoch_ended = self.progress.seconds

    def on_train_epoch_start(self) -> None:
        """Keep back what an epoch's end takes."""
        super().on_train_epoch_start()
        if self._epoch_ended is not None:
            self.progress.closing = max(self.progress.closing, self.progress.seconds - self._epoch_ended)
        self._pause_ended()

    # -------------------------------------------------------------------------------------------------- the checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what the clock shows, so that a time budget spans resumes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hjepa_seconds"] = self.progress.seconds
        if self.budget is not None:
            checkpoint["hjepa_trained"] = self.progress.done * self.budget
        checkpoint["hjepa_end"] = {"validation": self.progress.validation, "closing": self.progress.closing}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the clock of the earlier run, and what its end will take: a resumed run has no sanity check."""
        super().on_load_checkpoint(checkpoint)
        spent = float(checkpoint.get("hjepa_seconds", 0.0))
        self.progress.spent = max(self.progress.spent, spent)
        if self.budget is not None:  # in seconds, as another budget is another length: the share is of the new one
            self.progress.done = min(1.0, float(checkpoint.get("hjepa_trained", spent)) / self.budget)
        end = checkpoint.get("hjepa_end", {"validation": 0.0, "closing": 0.0})
        self.progress.rehearsal, self.progress.closing = float(end["validation"]), float(end["closing"])
