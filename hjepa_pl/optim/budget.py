"""How far a run is: by steps, by the clock, or by whichever is further."""

import re
import time

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

    Args:
        total_steps: Optimizer steps of the whole run; infinite if only the clock ends it.
        budget: Seconds, or None without a budget.
        spent: Seconds spent before this process (a resumed run).
    """

    def __init__(self, total_steps: float, budget: float | None, spent: float = 0.0) -> None:
        self.total_steps, self.budget, self.spent = total_steps, budget, spent
        self.reserve = 0.0
        """Seconds kept back at the end, for the last validation."""
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of the run so far, earlier processes included."""
        return self.spent + time.monotonic() - self.started

    def share(self, step: int) -> float:
        """Return progress in [0, 1] of optimizer step number `step`, from 0."""
        # Counted at the step's end: the first step moves, and the last runs at the end of every schedule.
        done = (step + 1) / self.total_steps
        return min(1.0, max(done, self.seconds / max(self.budget - self.reserve, 1.0) if self.budget else 0.0))
