"""Settings of the optimizer and of the target encoder's average."""

from dataclasses import dataclass

from hjepa_pl.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a cosine, all functions of the run's progress."""

    lr: float = 1e-3
    """Peak learning rate."""
    min_lr: float | None = None
    """Learning rate at the end; not with min_lr_ratio."""
    min_lr_ratio: float | None = None
    """Learning rate at the end over the peak's; null is 0.001 unless min_lr is given."""
    warmup_epochs: float | None = None
    """Length of the warm-up in epochs; not with warmup_steps. Without either it is 5 % of the run.

    It is a share of the run that the Trainer's limits allow; a budget that ends the run sooner shortens it alike."""
    warmup_steps: int | None = None
    """Length of the warm-up in optimizer steps."""
    weight_decay: float = 0.05
    """Weight decay at the start, on matrices only."""
    weight_decay_end: float | None = None
    """Weight decay at the end, reached by a cosine; null keeps it constant."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""

    def __post_init__(self) -> None:
        """Refuse ranges that cannot be trained with and pairs of keys that contradict each other."""
        if not 0 < self.lr < float("inf"):
            raise ConfigError(f"optimizer.lr must be a positive number, got {self.lr}.")
        for first, second in (("min_lr", "min_lr_ratio"), ("warmup_epochs", "warmup_steps")):
            if getattr(self, first) is not None and getattr(self, second) is not None:
                raise ConfigError(f"optimizer.{first} and optimizer.{second} say the same thing twice; give one.")
        if self.min_lr is not None and not 0 <= self.min_lr <= self.lr:
            raise ConfigError(f"optimizer.min_lr must lie in [0, lr {self.lr}], got {self.min_lr}.")
        if self.min_lr_ratio is not None and not 0 <= self.min_lr_ratio <= 1:
            raise ConfigError(f"optimizer.min_lr_ratio must lie in [0, 1], got {self.min_lr_ratio}.")
        for name in ("warmup_epochs", "warmup_steps", "weight_decay", "weight_decay_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"optimizer.{name} must not be negative, got {value}.")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ConfigError(f"optimizer.betas must be two numbers in [0, 1), got {list(self.betas)}.")

    @property
    def floor(self) -> float:
        """Learning rate at the end."""
        if self.min_lr is not None:
            return self.min_lr
        return self.lr * (0.001 if self.min_lr_ratio is None else self.min_lr_ratio)


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """How the target encoder follows the context encoder."""

    momentum: float = 0.996
    """Share of the target that is kept in a step. Its horizon 1 / (1 - momentum) is capped at a third of the run,
    of the steps that a time budget leaves it."""
    momentum_end: float | None = None
    """Momentum at the end, reached on a straight line; null keeps it constant (a rise to 1 freezes the target)."""

    def __post_init__(self) -> None:
        """Refuse momenta outside [0, 1]."""
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"ema.momentum must lie in [0, 1), got {self.momentum}; at 1 the target never moves.")
        if self.momentum_end is not None and not self.momentum <= self.momentum_end <= 1:
            raise ConfigError(
                f"ema.momentum_end must lie between ema.momentum {self.momentum} and 1, got {self.momentum_end}."
            )
