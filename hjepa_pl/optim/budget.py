"""Progress of a run: by steps or by the clock, whichever is further."""

import math
import re
import statistics
import time
from collections import deque
from typing import NamedTuple

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.run_length import clock

EXHAUSTED = "leaves no time to train"
"""In the message for a budget that is spent before the first step of a process."""


def parse_duration(text: str) -> float:
    """Return seconds of "HH:MM:SS" or "DD:HH:MM:SS" (Lightning's `max_time` form).

    Raises:
        ConfigError: If it has another form or is not positive.
    """
    if not isinstance(text, str) or not re.fullmatch(r"(\d+:)?\d{1,3}:\d{2}:\d{2}", text):
        raise ConfigError(f'invalid `time_budget={text}`: must be "HH:MM:SS" in quotes, for example "08:00:00".')
    seconds = 0.0
    for part, factor in zip(reversed(text.split(":")), (1, 60, 3600, 86400), strict=False):
        seconds += int(part) * factor
    if seconds <= 0:
        raise ConfigError(f"invalid `time_budget={text}`: must be longer than 0:00:00.")
    return seconds


_FIRST_STEP = 1e-4
"""Fraction of the training time for a process' first step, whose length is unknown: its learning rate is not zero."""


class Pace(NamedTuple):
    """Reading of the clock when an optimizer step is about to run."""

    fraction: float
    """Of the training time, at the end of this step."""
    steps_left: float
    """Steps that fit after this one; infinite without a budget or before a step was timed."""
    steps_before_validation: float
    """Steps that fit after this one and before one validation more than the last."""

    def later(self, steps: int) -> "Pace":
        """Return the expected reading after `steps` steps of the same length."""
        if steps == 0 or math.isinf(self.steps_left):
            return self
        fraction = self.fraction + (1.0 - self.fraction) * steps / max(self.steps_left, steps)
        return Pace(fraction, self.steps_left - steps, self.steps_before_validation - steps)


class RunProgress:
    """Fraction of the run that is done: the larger of the fractions of steps and of time.

    The fraction of time is 0 at the end of the first optimizer step (which compiles) and 1 at the end of the training
    time: start-up counts against the budget, not against the warm-up. A resumed run starts at its stored fraction,
    which then rises to 1 over the time that is left; the fraction never falls.

    The training time is the budget without a reserve for the end of the run: a validation and an epoch's end
    (checkpoints), each as long as before, 1 % for variance, and the exit of the process, a seventh of its start
    (measured: 1.8 s of processor time to 14 s).

    Args:
        total_steps: Optimizer steps of the whole run; infinite if only the clock ends it.
        budget: Seconds, or None without a budget.
        spent: Seconds of earlier processes (a resumed run).
        started: `time.monotonic()` at the start of the run's clock; None is now.
    """

    def __init__(
        self, total_steps: float, budget: float | None, spent: float = 0.0, started: float | None = None
    ) -> None:
        self.total_steps, self.budget, self.spent = total_steps, budget, spent
        self.started = time.monotonic() if started is None else started
        self.exit = (time.monotonic() - self.started) / 7
        """Seconds from the end of the run to the end of the process."""
        self.sanity_check = 0.0
        """Seconds of a validation, as estimated before the first one of this process' training."""
        self.epoch_end = 0.0
        """Seconds of an epoch's end, most of them for checkpoints."""
        self.time_fraction = 0.0
        """Fraction of time at the end of the latest step; never falls. A resumed run starts at it."""
        self.last_end: float | None = None
        """Seconds of the run at the end of the latest step or pause."""
        self._validations: deque[float] = deque(maxlen=2)
        self._steps: deque[float] = deque(maxlen=5)
        self._anchor: tuple[float, float] | None = None
        """Seconds and fraction of time at the end of this process' latest step."""

    @property
    def seconds(self) -> float:
        """Seconds of the run so far, earlier processes included."""
        return self.spent + time.monotonic() - self.started

    @property
    def validation(self) -> float:
        """Expected seconds of a validation: the longer of the last two."""
        return max(self._validations, default=self.sanity_check)

    @property
    def usable(self) -> float:
        """Seconds of the run at which training must end; infinite without a budget."""
        return math.inf if self.budget is None else 0.99 * self.budget - self.ending

    @property
    def ending(self) -> float:
        """Expected seconds of the end of the run: a validation, checkpoints and the exit."""
        return self.validation + self.epoch_end + self.exit

    def pace(self) -> Pace:
        """Return the clock's reading for the step that is about to run."""
        if self.budget is None:
            return Pace(0.0, math.inf, math.inf)
        # The median, so that a stall (an epoch that starts its workers) does not count.
        step, now = statistics.median(self._steps or [0.0]), self.seconds
        ends = now if self.last_end is None else max(now, self.last_end + step)
        spare = self.usable - ends
        left, before = (s / step if step else (math.inf if s >= 0 else 0.0) for s in (spare, spare - self.validation))
        self.time_fraction = max(self.time_fraction, self._fraction_at(ends))
        return Pace(self.time_fraction, left, before)

    def _fraction_at(self, seconds: float) -> float:
        """Return the fraction of the training time at `seconds` of the run, on a line from the latest step's end."""
        if self._anchor is None:
            return min(1.0, self.time_fraction + _FIRST_STEP)
        since, fraction = self._anchor
        return fraction + (1.0 - fraction) * min(1.0, (seconds - since) / max(self.usable - since, 1e-9))

    def fraction(self, step: int, pace: Pace) -> float:
        """Return progress in [0, 1] at the end of an optimizer step, so that the first step has a learning rate.

        It is exactly 1, the end of every schedule, at the last step: the one after which no other fits in the budget.

        Args:
            step: Number of the step, from 0.
            pace: The clock's reading for it.
        """
        return 1.0 if pace.steps_left < 1.0 else min(1.0, max((step + 1) / self.total_steps, pace.fraction))

    def done(self, step: int) -> float:
        """Return progress in [0, 1] before an optimizer step, the same on every rank.

        Args:
            step: Number of the step, from 0.
        """
        return min(1.0, max(step / self.total_steps, self.time_fraction))

    def expected_steps(self, step: int, fraction: float) -> float:
        """Return the expected optimizer steps of the run: its limit, or by extrapolation where the clock ends it.

        Args:
            step: Number of the current step, from 0.
            fraction: Of the run at the end of it.
        """
        return self.total_steps if self.budget is None else min(self.total_steps, (step + 1) / fraction)

    def step_ended(self) -> None:
        """Time a step; not the first, which compiles."""
        now = self.seconds
        if self._anchor is not None and self.last_end is not None:
            self._steps.append(now - self.last_end)
        self._anchor = (now, self.time_fraction if self._anchor is None else self._fraction_at(now))
        self.last_end = now

    def pause_ended(self) -> None:
        """Time the next step from here."""
        self.last_end = self.seconds

    def validation_ended(self, seconds: float) -> None:
        """Store the length of a validation in training."""
        self._validations.append(seconds)

    def exhausted(self) -> str | None:
        """Return an error message if the budget leaves no time for a step, else None."""
        seconds = self.seconds
        if self.budget is None or seconds < self.usable:
            return None
        earlier = f" ({clock(self.spent)} of it by earlier processes)" if self.spent else ""
        return (
            f"invalid `time_budget={clock(self.budget)}`: {EXHAUSTED}, as {clock(seconds)} is spent before "
            f"the first step{earlier} and the end (a validation, checkpoints) takes {clock(self.ending)}; "
            f"raise it well above {clock(math.ceil((seconds + self.ending) / 0.99))}."
        )
