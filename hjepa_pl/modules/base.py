"""What every pretraining module shares: the optimizer, schedules by progress, finite steps."""

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from hjepa_pl.models.pretrained import without_pretrained
from hjepa_pl.modules.check_trainer import check_epoch, check_trainer, check_warmup
from hjepa_pl.modules.clock import RunClock
from hjepa_pl.modules.finite import FiniteSteps
from hjepa_pl.optim.config import OptimizerConfig
from hjepa_pl.optim.groups import weight_decay_groups
from hjepa_pl.optim.schedules import cosine, warmup_cosine
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.malloc import keep_freed_memory
from hjepa_pl.utils.run_length import clock, limited, steps_per_epoch, total_steps

_LEAST_WARMUP = 10
"""Optimizer steps of a warm-up under a time budget below which it is said to be none."""


class PretrainModule(RunClock, FiniteSteps):
    """Base of the pretraining modules. A subclass gives `trained_modules`, a `training_step` and its own hooks."""

    def __init__(self, optimizer: OptimizerConfig, time_budget: str | None) -> None:
        super().__init__(time_budget)
        self.optimizer_config = optimizer
        self._warms_up = True

    def trained_modules(self) -> list[nn.Module]:
        """Return the modules whose parameters the optimizer gets."""
        raise NotImplementedError

    def after_optimizer_step(self, share: float) -> None:
        """Do what follows an optimizer step, at a share of the run in [0, 1]."""

    def configure_callbacks(self) -> list[pl.Callback]:
        """Refuse a Trainer that cannot train the model: in this first hook, before data is read."""
        found = super().configure_callbacks()
        check_trainer(self.trainer, self.budget)
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_warmup(self.optimizer_config, self.trainer)
        return found

    def check_length(self, batches: int) -> None:
        """Refuse a run whose length does not go with its limits and warm-up: before the untrained network is judged.

        Args:
            batches: Of an epoch, by the data.

        Raises:
            ConfigError: Naming the key.
        """
        trainer: Any = self.trainer
        if not trainer.fast_dev_run:
            check_epoch(trainer, batches)
            kept = limited(trainer, batches)
            self._warmup_share(total_steps(trainer, kept), steps_per_epoch(trainer, kept))

    def setup(self, stage: str) -> None:
        """Keep freed memory while a CPU computes."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and getattr(data, "knows_epoch", False):
            self.check_length(data.batches_per_epoch)
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()

    def teardown(self, stage: str) -> None:
        """Give it back. Lightning does not come here after an error: `keep_freed_memory(False)` does it by hand."""
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory(False)

    # ------------------------------------------------------------------------------------------------ the schedules

    def configure_optimizers(self) -> Optimizer:
        """Make AdamW. Its rate and decay are set at each step from the run's progress, so there is no scheduler."""
        config = self.optimizer_config
        groups = weight_decay_groups(self.trained_modules(), config.weight_decay)
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)

    def on_train_start(self) -> None:
        """Fix the length of the run and of the warm-up.

        Raises:
            ConfigError: If the run has no end, is over, or has no time for a step.
        """
        total = total_steps(self.trainer)
        if math.isinf(total) and self.budget is None:
            raise ConfigError("the run has no end: set trainer.max_epochs, trainer.max_steps or time_budget.")
        if self.trainer.global_step >= total:
            raise ConfigError(
                f"the run is already complete at step {self.trainer.global_step} of {total:.0f}; "
                "raise trainer.max_epochs to train on."
            )
        self.begin_steps(total)
        self._warms_up = True
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.warmup_share()

    def warmup_share(self) -> float:
        """Return the warm-up's share of the run.

        Raises:
            ConfigError: If it is as long as the run, or its share is unknown.
        """
        return self._warmup_share(self.progress.total_steps, steps_per_epoch(self.trainer))

    def _warmup_share(self, total: float, per_epoch: float) -> float:
        """Return the warm-up's share of a run of `total` optimizer steps, of `per_epoch` an epoch."""
        config = self.optimizer_config
        if config.warmup_epochs is None and config.warmup_steps is None:
            return 0.05
        steps = config.warmup_steps if config.warmup_steps is not None else (config.warmup_epochs or 0.0) * per_epoch
        if steps >= total:
            key = "warmup_steps" if config.warmup_steps is not None else "warmup_epochs"
            raise ConfigError(
                f"optimizer.{key} {getattr(config, key)} is {steps:.0f} steps, as long as the run of {total:.0f}; "
                "shorten it."
            )
        if math.isinf(total):
            raise ConfigError(
                "a warm-up in epochs or steps has no share of a run that only the clock ends; "
                "set trainer.max_epochs too, or leave both out for 5 % of the time."
            )
        return steps / total

    def _judge_warmup(self, share: float) -> None:
        """Say it once, where a time budget that is too short for the run's speed made the warm-up a jump."""
        warmup, step = self.warmup_share(), self.trainer.global_step
        if not self._warms_up or share < warmup:
            return
        self._warms_up = False
        by_clock = share > (step + 1) / self.progress.total_steps
        if self.budget is not None and by_clock and warmup > 0 and step < _LEAST_WARMUP:
            rank_zero_warn(
                f"`time_budget={clock(self.budget)}` is too short for a warm-up: its {warmup:.1%} of the run had "
                f"{step} optimizer steps, and the rate was soon at its peak; raise it, or take smaller batches."
            )

    def _apply_schedules(self, optimizer: Optimizer, share: float) -> None:
        config = self.optimizer_config
        lr = warmup_cosine(config.lr, config.floor, self.warmup_share(), share)
        end = config.weight_decay if config.weight_decay_end is None else config.weight_decay_end
        for group in optimizer.param_groups:
            group["lr"] = lr
            if group["decays"]:
                group["weight_decay"] = cosine(config.weight_decay, end, share)

    # ------------------------------------------------------------------------------------------------------ the step

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Set the schedules, step, then do what follows a step: once for each step of the optimizer."""
        pace = self.pace()
        share = self.progress.share(self.trainer.global_step, pace)
        self._judge_warmup(share)
        self._apply_schedules(optimizer, share)  # type: ignore[arg-type]
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._terms.clear()
        self.log_predictions()
        self.after_optimizer_step(share)
        self.end_step(share, room=pace.room >= 1.0)

    # -------------------------------------------------------------------------------------------------- the checkpoint

    def trainer_settings(self) -> dict[str, Any]:
        """Return the Trainer's settings that a resumed run must have too, for its place in the data to be the same."""
        trainer: Any = self.trainer
        return {
            "processes": trainer.world_size,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "limit_train_batches": trainer.limit_train_batches,
            "precision": str(trainer.precision),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what data the run draws, and how."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hjepa_trainer"] = self.trainer_settings()
        settings = getattr(getattr(self.trainer, "datamodule", None), "settings", None)
        if callable(settings):
            checkpoint["hjepa_data"] = settings()

    @_restricted_classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint as Lightning does; what `encoder.pretrained` names is not read again, and may be gone."""
        with without_pretrained():
            return super().load_from_checkpoint(*args, **kwargs)
