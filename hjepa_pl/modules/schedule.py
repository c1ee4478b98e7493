"""Learning rate and weight decay of a run, as functions of its progress."""

import math

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from hjepa_pl.optim.budget import RunProgress
from hjepa_pl.optim.config import OptimizerConfig
from hjepa_pl.optim.schedules import cosine, warmup_cosine, warmup_stable_decay
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.run_length import clock
from hjepa_pl.utils.settings import invalid
from hjepa_pl.utils.wording import as_typed

_DEFAULT_WARMUP = 0.05
"""Fraction of the run."""
_MIN_WARMUP_STEPS = 10
"""Optimizer steps of a warm-up under a time budget; fewer draw a warning."""


class Schedule:
    """Linear warm-up and cosine or cool-down of the learning rate, cosine of the weight decay.

    Args:
        config: Peak, end, warm-up and cool-down.

    Attributes:
        warmup: Fraction of the run.
        peak: Learning rate after the warm-up, scaled by `lr_scale`.
    """

    def __init__(self, config: OptimizerConfig) -> None:
        self.config = config
        self.warmup, self.peak = _DEFAULT_WARMUP, config.lr
        self._warming_up = True
        self._resumed = False

    def scale(self, images: int) -> None:
        """Set the peak for a number of images an optimizer step, on all devices; raises as `OptimizerConfig.peak`."""
        self.peak = self.config.peak(images)

    def warmup_fraction(self, total_steps: float, steps_per_epoch: float) -> float:
        """Return the warm-up's fraction of a run.

        Args:
            total_steps: Optimizer steps of the run.
            steps_per_epoch: Optimizer steps of an epoch.

        Raises:
            ConfigError: If the warm-up is as long as the run, or leaves no time for the cool-down, or the run's number
                of steps is unknown.
        """
        warmup, config = self._warmup_fraction(total_steps, steps_per_epoch), self.config
        if config.schedule == "wsd" and warmup + config.cooldown > 1.0:
            raise invalid(
                "optimizer.cooldown_fraction", config.cooldown_fraction,
                f"is {config.cooldown:.0%} of the run, and the warm-up {warmup:.0%}; use less.",
            )  # fmt: skip
        return warmup

    def _warmup_fraction(self, total_steps: float, steps_per_epoch: float) -> float:
        config = self.config
        if config.warmup_epochs is None and config.warmup_steps is None:
            return _DEFAULT_WARMUP
        unit = "epochs" if config.warmup_steps is None else "steps"
        length = getattr(config, f"warmup_{unit}")
        steps = length * steps_per_epoch if unit == "epochs" else length
        if steps >= total_steps:
            raise ConfigError(
                f"invalid `optimizer.warmup_{unit}={as_typed(length)}`: is {steps:.0f} steps, and the run has "
                f"{total_steps:.0f}; use less."
            )
        if math.isinf(total_steps):
            raise ConfigError(
                f"invalid `optimizer.warmup_{unit}={as_typed(length)}`: the number of steps is unknown where only "
                "time_budget ends the run; set trainer.max_epochs too, or remove it for 5 % of the time."
            )
        return steps / total_steps

    def begin(self, total_steps: float, steps_per_epoch: float, *, trial: bool, resumed: bool = False) -> None:
        """Set the length of the run.

        Args:
            total_steps: Optimizer steps of the run.
            steps_per_epoch: Optimizer steps of an epoch.
            trial: Whether the run is a trial of a few steps (`fast_dev_run`), which may end in the warm-up.
            resumed: Whether the optimizer's state is that of a checkpoint.

        Raises:
            ConfigError: As `warmup_fraction`.
        """
        self._warming_up, self._resumed = True, resumed
        try:
            self.warmup = self.warmup_fraction(total_steps, steps_per_epoch)
        except ConfigError:
            if not trial:
                raise
            self.warmup = 1.0

    def apply(self, optimizer: Optimizer, fraction: float) -> None:
        """Set learning rate and weight decay of a step at a fraction of the run in [0, 1]."""
        config, lr = self.config, self.learning_rate(fraction)
        self._warn_of_second_cooldown(float(optimizer.param_groups[0]["lr"]), lr, fraction)
        end = config.weight_decay if config.weight_decay_end is None else config.weight_decay_end
        for group in optimizer.param_groups:
            group["lr"] = lr
            if group["decays"]:
                group["weight_decay"] = cosine(config.weight_decay, end, fraction)

    def learning_rate(self, fraction: float) -> float:
        """Return the learning rate at a fraction of the run in [0, 1]."""
        config, floor = self.config, self.config.floor(self.peak)
        if config.schedule == "wsd":
            return warmup_stable_decay(self.peak, floor, self.warmup, config.cooldown, fraction)
        return warmup_cosine(self.peak, floor, self.warmup, fraction)

    def _warn_of_second_cooldown(self, before: float, lr: float, fraction: float) -> None:
        """Warn, once, of a run resumed with a longer limit from a checkpoint that had cooled down: half is lost.

        Args:
            before: Learning rate of the checkpoint.
            lr: Of the first step.
            fraction: Of the run.
        """
        resumed, self._resumed = self._resumed, False
        if resumed and self.config.schedule == "wsd" and fraction >= self.warmup and before < 0.5 * lr:
            rank_zero_warn(
                f"the checkpoint is from the cool-down of a shorter run: its learning rate is {before:.3g} and returns "
                f"to {lr:.3g}. Resume from a checkpoint before the cool-down, or one of a run with "
                "optimizer.cooldown_fraction=0."
            )

    def warn_of_short_warmup(self, step: int, fraction: float, progress: RunProgress) -> None:
        """Warn, once, of a time budget in which the warm-up has had too few steps to be one.

        Args:
            step: Number of the optimizer step, from 0.
            fraction: Of the run.
            progress: Has the budget and the number of steps.
        """
        if not self._warming_up or fraction < self.warmup:
            return
        self._warming_up = False
        by_clock = fraction > (step + 1) / progress.total_steps
        if progress.budget is not None and by_clock and self.warmup > 0 and step < _MIN_WARMUP_STEPS:
            rank_zero_warn(
                f"`time_budget={clock(progress.budget)}` is too short for a warm-up: its {self.warmup:.1%} of the run "
                f"had {step} optimizer steps before the peak learning rate; raise it, or use smaller batches."
            )
