"""How far a run is: by steps, by the clock, or by whichever is further."""

import math
import re
import statistics
import time
from collections import deque

from hjepa_pl.functional.length import clock
from hjepa_pl.types import ConfigError


def parse_duration(text: str) -> float:
    """Return seconds for "HH:MM:SS" or "DD:HH:MM:SS" (Lightning's `max_time` form).

    Raises:
        ConfigError: If it is written otherwise or is not positive.
    """
    if not isinstance(text, str) or not re.fullmatch(r"(\d+:)?\d{1,3}:\d{2}:\d{2}", text):
        raise ConfigError(f'time_budget must be written "HH:MM:SS" in quotes, for example "08:00:00", got {text!r}.')
    seconds = 0.0
    for part, factor in zip(reversed(text.split(":")), (1, 60, 3600, 86400), strict=False):
        seconds += int(part) * factor
    if seconds <= 0:
        raise ConfigError(f"time_budget must be longer than nothing, got {text!r}.")
    return seconds


class Progress:
    """The share of the run that is done: the larger of the shares of steps and of time.

    Training gets what the end of the run does not need of the budget: a validation and an epoch's end (checkpoints),
    each for as long as it took before, 1 % for what varies, and what the process takes to exit: a seventh of what it
    took to start (1.8 s of processor time to 14 s, and a little more for what a run adds).

    Args:
        total_steps: Optimizer steps of the whole run; infinite if only the clock ends it.
        budget: Seconds, or None without a budget.
        spent: Seconds spent before this process (a resumed run).
        started: `time.monotonic()` at which the run's clock started; None is now.
    """

    def __init__(
        self, total_steps: float, budget: float | None, spent: float = 0.0, started: float | None = None
    ) -> None:
        self.total_steps, self.budget, self.spent = total_steps, budget, spent
        self.started = time.monotonic() if started is None else started
        self.exit = (time.monotonic() - self.started) / 7
        """Seconds from the last line of the run to the end of the process."""
        self.rehearsal = 0.0
        """Seconds that a validation takes as far as is known before the first one of this process' training."""
        self.closing = 0.0
        """Seconds that the end of an epoch takes, most of them for checkpoints."""
        self._validations: deque[float] = deque(maxlen=2)
        self._steps: deque[float] = deque(maxlen=5)
        self._warm = False
        self.mark: float | None = None
        """Seconds of the run at which the latest step or pause ended."""

    @property
    def seconds(self) -> float:
        """Seconds of the run so far, earlier processes included."""
        return self.spent + time.monotonic() - self.started

    @property
    def validation(self) -> float:
        """Seconds that a validation takes: the longer of the last two, as one may have been lucky."""
        return max(self._validations, default=self.rehearsal)

    @property
    def usable(self) -> float:
        """Seconds of the run after which training has to end; infinite without a budget."""
        return math.inf if self.budget is None else 0.99 * self.budget - self.ending

    @property
    def ending(self) -> float:
        """Seconds that the end of the run takes: a validation, checkpoints, and leaving."""
        return self.validation + self.closing + self.exit

    def share(self, step: int) -> float:
        """Return progress in [0, 1] of optimizer step number `step`, from 0, which is about to run.

        It is exactly 1, the end of every schedule, for the last step: the one after which no other fits in the budget.
        """
        if not self._fits_after_this_step(0.0):
            return 1.0
        # Steps are counted at their end, so that the first one moves.
        return min(1.0, max((step + 1) / self.total_steps, self.seconds / self.usable))

    def fits_validation(self) -> bool:
        """Return whether a validation after the step that is about to run leaves time for another step, and the end."""
        return self._fits_after_this_step(self.validation)

    def _fits_after_this_step(self, seconds: float) -> bool:
        """Return whether something and one more step fit in after the step that is about to run."""
        # The median: a stall, as when an epoch starts its workers, says nothing of the last steps.
        step, now = statistics.median(self._steps or [0.0]), self.seconds
        ends = now if self.mark is None else max(now, self.mark + step)
        return ends + seconds + step <= self.usable

    def step_ended(self) -> None:
        """Take the time of a step, but for the first, which compiles."""
        now = self.seconds
        if self.mark is not None and self._warm:
            self._steps.append(now - self.mark)
        self.mark, self._warm = now, True

    def pause_ended(self) -> None:
        """Count the next step from here: what was before it was none of its own."""
        self.mark = self.seconds

    def validation_ended(self, seconds: float) -> None:
        """Take the time of a validation in training."""
        self._validations.append(seconds)

    def refusal(self) -> str | None:
        """Return why a budget that the start has used up is refused; None if there is time for a step."""
        seconds = self.seconds
        if self.budget is None or seconds < self.usable:
            return None
        earlier = f" ({clock(self.spent)} of it by earlier processes)" if self.spent else ""
        return (
            f"time_budget {clock(self.budget)} leaves no time to train: {clock(seconds)} is spent before the first "
            f"step{earlier}, and the end, a validation and checkpoints, takes {clock(self.ending)}; "
            f"raise it well above {clock(math.ceil((seconds + self.ending) / 0.99))}."
        )
