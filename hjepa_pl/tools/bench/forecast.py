"""Prediction of the time of a whole run from a timed part of it."""

import statistics
from typing import NamedTuple

from hjepa_pl.tools.bench.timed_run import TimedRun


class Forecast(NamedTuple):
    """Predicted seconds of the configured run on this machine, without its time budget."""

    start: float
    """Before the first step, with the validation of the untrained network and the extra time of the first steps."""
    epoch: float
    """Of an epoch: its steps, its end and start, and its part of the validations."""
    steps: float
    """Of all steps."""
    ends: float
    """Of all ends and starts of epochs."""
    validations: float

    @property
    def total(self) -> float:
        """Sum of the parts; infinite if only the time budget ends the run."""
        return self.start + self.steps + self.ends + self.validations


def forecast(run: TimedRun, before: float = 0.0) -> Forecast:
    """Predict the time of the whole run.

    A step takes the mean of the measured ones without the fastest and the slowest tenth. (With masks of several sizes
    the median is biased; the plain mean would include disturbances.)

    Args:
        run: The measured run.
        before: Seconds from the command to the setup of the Trainer.
    """
    watch = run.watch
    times, cut = sorted(watch.steps), len(watch.steps) // 10
    mean = statistics.fmean(times[cut : len(times) - cut])
    slow = max(0.0, sum(watch.warm) - mean * len(watch.warm))
    end = 0.0 if run.steps_per_epoch == 1 else watch.finished  # an estimate, if no epoch has ended
    if watch.epochs:
        end = max(0.0, statistics.fmean(watch.epochs) - mean)
    validation = statistics.fmean(watch.validations) if watch.validations else 0.0
    steps = run.epochs * run.steps_per_epoch
    shared = validation * run.validations / run.epochs if run.epochs < float("inf") else 0.0
    epoch = run.steps_per_epoch * mean + end + shared
    checks = validation * run.validations if validation else 0.0
    return Forecast(before + watch.started + slow, epoch, steps * mean, run.epochs * end, checks)
