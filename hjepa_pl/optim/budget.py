"""How far a run is: by steps, by the clock, or by whichever is further."""

import math
import re
import statistics
import time
from collections import deque
from typing import NamedTuple

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.run_length import clock


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


_UNTIMED = 1e-4
"""Share of training's time that a process' first step counts as, which has no measure yet: its rate is not zero."""


class Pace(NamedTuple):
    """What the clock says when an optimizer step is about to run, and for some steps after it."""

    share: float
    """Of training's time, at the end of this step."""
    left: float
    """Steps that fit in after this one; infinite where nothing is known of their length, or no clock ends the run."""
    room: float
    """The same with a validation among them."""

    def later(self, steps: int) -> "Pace":
        """Return what it says so many steps on, if each takes as long as the last ones did."""
        if steps == 0 or math.isinf(self.left):
            return self
        share = self.share + (1.0 - self.share) * steps / max(self.left, steps)
        return Pace(share, self.left - steps, self.room - steps)


class RunProgress:
    """The share of the run that is done: the larger of the shares of steps and of time.

    The share of time is 0 when the first optimizer step has run (it compiles) and 1 at the end of training's time: the
    start counts against the budget, not against the warm-up. A resumed run goes on at the share it had, which then
    rises to 1 over what is left of the time; what was lost between is lost to the budget alone. It never falls.

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
        self.done = 0.0
        """The share of time at the end of the latest step; never less than it was. What a resumed run goes on from."""
        self._anchor: tuple[float, float] | None = None
        """Seconds and share of time at the end of this process' latest step."""
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

    def pace(self) -> Pace:
        """Return what the clock says of the step that is about to run."""
        if self.budget is None:
            return Pace(0.0, math.inf, math.inf)
        # The median: a stall, as when an epoch starts its workers, says nothing of the last steps.
        step, now = statistics.median(self._steps or [0.0]), self.seconds
        ends = now if self.mark is None else max(now, self.mark + step)
        spare = self.usable - ends
        left, room = (s / step if step else (math.inf if s >= 0 else 0.0) for s in (spare, spare - self.validation))
        self.done = max(self.done, self._share_at(ends))
        return Pace(self.done, left, room)

    def _share_at(self, seconds: float) -> float:
        """Return the share of training's time at so many seconds of the run, from where the latest step ended."""
        if self._anchor is None:
            return min(1.0, self.done + _UNTIMED)
        since, share = self._anchor
        return share + (1.0 - share) * min(1.0, (seconds - since) / max(self.usable - since, 1e-9))

    def share(self, step: int, pace: Pace) -> float:
        """Return progress in [0, 1] of optimizer step number `step`, from 0, which is about to run.

        Steps are counted at their end, so that the first one moves. It is exactly 1, the end of every schedule, for
        the last step: the one after which no other fits in the budget.
        """
        return 1.0 if pace.left < 1.0 else min(1.0, max((step + 1) / self.total_steps, pace.share))

    def expected_steps(self, step: int, share: float) -> float:
        """Return how many optimizer steps the run will have had at its end, by its share at the end of number `step`.

        Those of its limits, unless the clock ends it sooner: then as many for a share as there were so far.
        """
        return self.total_steps if self.budget is None else min(self.total_steps, (step + 1) / share)

    def step_ended(self) -> None:
        """Take the time of a step, but for the first, which compiles."""
        now = self.seconds
        if self._anchor is not None and self.mark is not None:
            self._steps.append(now - self.mark)
        self._anchor = (now, self.done if self._anchor is None else self._share_at(now))
        self.mark = now

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
