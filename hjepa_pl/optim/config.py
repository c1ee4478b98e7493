"""Settings of the optimizer and of the target encoder's moving average."""

from typing import Annotated, Literal

from annotated_types import Ge, Lt

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import Fraction, Hint, NonNegative, Pair, Positive, invalid, settings
from hjepa_pl.utils.wording import as_typed


@settings("optimizer")
class OptimizerConfig:
    """AdamW or Muon with linear warm-up, then a cosine or a cool-down, as functions of the run's progress."""

    kind: Literal["adamw", "muon"] = "adamw"
    """Optimizer. With `muon` the matrices of the transformer blocks (query, key and value each by itself) get
    orthogonalized updates of AdamW's size (Muon, Jordan et al. 2024; arXiv:2502.16982), so that lr and weight_decay
    keep their meaning; all other parameters keep AdamW."""
    lr: Positive = 1e-3
    """Peak learning rate."""
    lr_scale: Literal["none", "sqrt", "linear"] = "none"
    """How lr, then that of 256 images an optimizer step, follows their number n = batch_size x devices x accumulated
    batches: `linear` is lr * n / 256, `sqrt` is lr * (n / 256)^0.5."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Learning rate after the warm-up: a cosine, or constant until a cool-down at the end of the run (warm-up, stable,
    decay)."""
    cooldown_fraction: Annotated[float, Ge(0), Lt(1)] | None = None
    """Fraction of the run in the cool-down of `wsd`, where the rate falls as 1 - sqrt (arXiv:2405.18392); null is 0.2.
    With 0 the rate stays constant, for a run that is resumed later with a longer limit and a cool-down (then set
    warmup_steps: a warm-up of 5 % grows with the limit)."""
    min_lr: NonNegative | None = None
    """Learning rate at the end, whatever lr_scale is; not with min_lr_ratio."""
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
        self._check_cooldown()
        for first, second in (("min_lr", "min_lr_ratio"), ("warmup_epochs", "warmup_steps")):
            if getattr(self, first) is not None and getattr(self, second) is not None:
                raise ConfigError(
                    f"invalid `optimizer.{second}={as_typed(getattr(self, second))}`: cannot be combined with "
                    f"optimizer.{first}; remove one of them."
                )
        if self.lr_scale == "none":
            self.peak(256)

    def _check_cooldown(self) -> None:
        """Reject a cool-down without its schedule, and an end of a learning rate that stays constant."""
        if self.cooldown_fraction is not None and self.schedule != "wsd":
            raise invalid(
                "optimizer.cooldown_fraction", self.cooldown_fraction,
                f"has no effect with optimizer.schedule={self.schedule}; set schedule to wsd, or remove it.",
            )  # fmt: skip
        for key in ("min_lr", "min_lr_ratio"):
            if self.cooldown_fraction == 0 and getattr(self, key) is not None:
                problem = "has no effect with optimizer.cooldown_fraction=0; remove it."
                raise invalid(f"optimizer.{key}", getattr(self, key), problem)

    @property
    def cooldown(self) -> float:
        """Fraction of the run in the cool-down of `wsd`."""
        return 0.2 if self.cooldown_fraction is None else self.cooldown_fraction

    def peak(self, images: int) -> float:
        """Return the peak learning rate by `lr_scale` (linear: arXiv:1706.02677; sqrt: arXiv:2205.10287, for Adam).

        Args:
            images: Of an optimizer step, on all devices.

        Raises:
            ConfigError: If `min_lr` is above it.
        """
        peak = self.lr * (images / 256) ** {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[self.lr_scale]
        if self.min_lr is not None and self.min_lr > peak:
            scaled = "" if self.lr_scale == "none" else f" scaled by lr_scale={self.lr_scale} to {peak:.3g}"
            raise invalid("optimizer.min_lr", self.min_lr, f"must be <= optimizer.lr={as_typed(self.lr)}{scaled}.")
        return peak

    def floor(self, peak: float) -> float:
        """Return the learning rate at the end of a run with this peak."""
        if self.min_lr is not None:
            return self.min_lr
        return peak * (0.001 if self.min_lr_ratio is None else self.min_lr_ratio)


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
