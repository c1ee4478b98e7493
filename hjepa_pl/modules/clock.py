"""Clock of a run with a time budget: shared by all ranks and kept over resumes."""

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch

from hjepa_pl.optim.budget import Pace, RunProgress, parse_duration
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.distributed import from_rank_zero
from hjepa_pl.utils.run_length import end_after_step

_MAX_STEPS_BETWEEN = 20
"""Most optimizer steps between two readings of rank zero's clock."""


class RunClock:
    """Times steps, validations and epoch ends, and ends the run within its budget.

    Args:
        time_budget: "HH:MM:SS", or None: then the clock only measures.

    Attributes:
        budget: Seconds, or None.
        progress: `RunProgress` of the current run.
        origin: `started` and `spent` of the next run's `RunProgress`, where its caller knows them.
    """

    def __init__(self, time_budget: str | None) -> None:
        self.budget = None if time_budget is None else parse_duration(time_budget)
        self.progress = RunProgress(math.inf, self.budget)
        self.origin: dict[str, float] = {}
        self._validation_began = 0.0
        self._epoch_ended: float | None = None
        self._limit_val_batches: int | float = 1.0
        self._read, self._read_at, self._read_next = Pace(0.0, math.inf, math.inf), 0, 0
        """Last reading of rank zero's clock, its step, and the step of the next one."""

    def start(self) -> None:
        """Start the clock of a run."""
        self.progress = RunProgress(math.inf, self.budget, **self.origin)
        self.origin, self._epoch_ended = {}, None

    def begin_training(self, trainer: pl.Trainer, total_steps: float) -> None:
        """Set the length of the run in optimizer steps, and time steps from here.

        Raises:
            ConfigError: If the budget has no time for a step.
        """
        self.progress.total_steps = total_steps
        message = self.progress.exhausted()
        if self.budget is not None and trainer.world_size > 1:
            message = trainer.strategy.broadcast(message)  # one clock: ranks must take the same number of steps
        if message is not None:
            raise ConfigError(message)
        self._limit_val_batches = trainer.limit_val_batches
        self._resume_steps()

    # --------------------------------------------------------------------------------------------------------- steps

    def pace(self, trainer: pl.Trainer, device: torch.device) -> Pace:
        """Return the `Pace` of the step that is about to run, the same on every rank.

        Reading rank zero's clock makes the ranks wait for one another. It is read at most every 20 steps, and never
        later than half way to the expected end, so that the run ends in its budget even if steps take twice as long.
        """
        if self.budget is None or trainer.world_size == 1:
            return self.progress.pace()
        step = trainer.global_step
        if step >= self._read_next:
            own = self.progress.pace() if trainer.is_global_zero else Pace(0.0, 0.0, 0.0)
            self._read, self._read_at = Pace(*from_rank_zero(own, device)), step
            left = self._read.steps_left
            self._read_next = step + (1 if math.isinf(left) else min(_MAX_STEPS_BETWEEN, max(1, int(left / 2))))
        pace = self._read.later(step - self._read_at)
        self.progress.time_fraction = pace.fraction
        return pace

    def step_ended(self, trainer: pl.Trainer, fraction: float, validates: bool) -> None:
        """Time a step, and end the run after its last one.

        Args:
            trainer: Of the run.
            fraction: Progress of the run in [0, 1] at the end of the step.
            validates: Whether a validation fits before the last step.
        """
        self.progress.step_ended()
        if fraction >= 1.0:
            end_after_step(trainer)
        if self.budget is not None:
            # Skip validations that would exceed the budget; the final one always runs.
            trainer.limit_val_batches = self._limit_val_batches if validates or fraction >= 1.0 else 0

    # --------------------------------------------------------------------------------------- validations, epoch ends

    def validation_started(self, trainer: pl.Trainer) -> None:
        """Time a validation from the end of the last step: it includes the start of its loaders."""
        last_end = None if trainer.sanity_checking else self.progress.last_end
        self._validation_began = self.progress.seconds if last_end is None else last_end

    def validation_ended(self, trainer: pl.Trainer) -> None:
        """Reserve the length of the validation for the end of the run."""
        seconds = self.progress.seconds - self._validation_began
        if trainer.sanity_checking:
            self.progress.sanity_check = seconds
        else:
            self.progress.validation_ended(seconds)
            self._resume_steps()

    def epoch_ended(self) -> None:
        """Time the end of an epoch: checkpoints are written between this hook and the next epoch's start."""
        self._epoch_ended = self.progress.seconds

    def epoch_started(self) -> None:
        """Reserve the length of an epoch's end for the end of the run."""
        if self._epoch_ended is not None:
            self.progress.epoch_end = max(self.progress.epoch_end, self.progress.seconds - self._epoch_ended)
        self._resume_steps()

    def _resume_steps(self) -> None:
        """Time the next step from here, and read rank zero's clock at it."""
        self.progress.pause_ended()
        self._read_next = 0

    # ----------------------------------------------------------------------------------------------------- checkpoint

    def state(self) -> dict[str, Any]:
        """Return the entries of a checkpoint by which a budget spans resumes."""
        state: dict[str, Any] = {"hjepa_seconds": self.progress.seconds}
        if self.budget is not None:
            state["hjepa_trained"] = self.progress.time_fraction * self.budget
        return state | {"hjepa_end": {"validation": self.progress.validation, "closing": self.progress.epoch_end}}

    def load_state(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore `state`; a resumed run has no sanity check that would measure a validation."""
        spent = float(checkpoint.get("hjepa_seconds", 0.0))
        self.progress.spent = max(self.progress.spent, spent)
        if self.budget is not None:  # stored in seconds, as the budget may have changed
            self.progress.time_fraction = min(1.0, float(checkpoint.get("hjepa_trained", spent)) / self.budget)
        end = checkpoint.get("hjepa_end", {"validation": 0.0, "closing": 0.0})
        self.progress.sanity_check, self.progress.epoch_end = float(end["validation"]), float(end["closing"])
