"""Settings of the optimizer and of the target encoder's moving average."""

from typing import Annotated

from annotated_types import Ge, Lt

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import Fraction, Hint, NonNegative, Pair, Positive, settings
from hjepa_pl.utils.wording import as_typed


@settings("optimizer")
class OptimizerConfig:
    """AdamW with linear warm-up and a cosine, as functions of the run's progress."""

    lr: Positive = 1e-3
    """Peak learning rate."""
    min_lr: NonNegative | None = None
    """Learning rate at the end; not with min_lr_ratio."""
    min_lr_ratio: Fraction | None = None
    """Learning rate at the end over the peak's; null is 0.001 without min_lr."""
    warmup_epochs: NonNegative | None = None
    """Length of the warm-up in epochs; not with warmup_steps. Without either it is 5 % of the run.

    It is a fraction of the run by the Trainer's limits; a time budget that ends the run sooner shortens it too."""
    warmup_steps: Annotated[int, Ge(0)] | None = None
    """Length of the warm-up in optimizer steps."""
    weight_decay: NonNegative = 0.05
    """Weight decay at the start, on matrices only."""
    weight_decay_end: NonNegative | None = None
    """Weight decay at the end, reached by a cosine; null keeps it constant."""
    betas: Pair[Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""

    def __post_init__(self) -> None:
        """Reject pairs of keys that contradict each other."""
        for first, second in (("min_lr", "min_lr_ratio"), ("warmup_epochs", "warmup_steps")):
            if getattr(self, first) is not None and getattr(self, second) is not None:
                raise ConfigError(
                    f"invalid `optimizer.{second}={as_typed(getattr(self, second))}`: cannot be combined with "
                    f"optimizer.{first}; remove one of them."
                )
        if self.min_lr is not None and self.min_lr > self.lr:
            raise ConfigError(
                f"invalid `optimizer.min_lr={as_typed(self.min_lr)}`: must be <= optimizer.lr={as_typed(self.lr)}."
            )

    @property
    def floor(self) -> float:
        """Learning rate at the end."""
        if self.min_lr is not None:
            return self.min_lr
        return self.lr * (0.001 if self.min_lr_ratio is None else self.min_lr_ratio)


@settings("ema")
class EMAConfig:
    """Momentum of the target encoder."""

    momentum: Annotated[float, Ge(0), Lt(1), Hint("at 1 the target never moves")] = 0.996
    """Fraction of the target that is kept in a step. Its horizon 1 / (1 - momentum) is capped at a third of the run's
    steps, as expected under a time budget."""
    momentum_end: Fraction | None = None
    """Momentum at the end, reached linearly; null keeps it constant (at 1 the target is frozen)."""

    def __post_init__(self) -> None:
        """Reject an end below the start."""
        if self.momentum_end is not None and self.momentum_end < self.momentum:
            raise ConfigError(
                f"invalid `ema.momentum_end={as_typed(self.momentum_end)}`: must be >= ema.momentum="
                f"{as_typed(self.momentum)}."
            )
