"""What every pretraining module shares: the optimizer, schedules by progress, finite steps, sparse logging."""

import math
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from hjepa_pl.functional.length import steps_per_epoch, total_steps
from hjepa_pl.models.pretrained import weights_follow
from hjepa_pl.optim.budget import Progress, parse_duration
from hjepa_pl.optim.groups import weight_decay_groups
from hjepa_pl.optim.schedules import cosine, warmup_cosine
from hjepa_pl.optim.settings import OptimizerConfig
from hjepa_pl.types import ConfigError, RunStopped


class PretrainModule(pl.LightningModule):
    """Base of the pretraining modules. A subclass gives `trained_modules`, a `training_step` and its own hooks."""

    def __init__(self, optimizer: OptimizerConfig, time_budget: str | None) -> None:
        super().__init__()
        self.optimizer_config = optimizer
        self.budget = None if time_budget is None else parse_duration(time_budget)
        self.progress = Progress(math.inf, self.budget)
        self.clock: dict[str, float] = {}
        """`started` and `spent` of the next run's `Progress`, where its caller knows them."""
        self._validation_began = 0.0
        self._epoch_ended: float | None = None
        self._limit_val_batches: int | float = 1.0
        self._terms: list[dict[str, Tensor]] = []

    def trained_modules(self) -> list[nn.Module]:
        """Return the modules whose parameters the optimizer gets."""
        raise NotImplementedError

    def after_optimizer_step(self, share: float) -> None:
        """Do what follows an optimizer step, at a share of the run in [0, 1]."""

    # ------------------------------------------------------------------------------------------------ the schedules

    def configure_optimizers(self) -> Optimizer:
        """Make AdamW. Its rate and decay are set at each step from the run's progress, so there is no scheduler."""
        config = self.optimizer_config
        groups = weight_decay_groups(self.trained_modules(), config.weight_decay)
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)

    def configure_callbacks(self) -> list[pl.Callback]:
        """Start the clock: this is the first hook of a run, before data is fetched or the untrained network judged."""
        if self.budget is not None and (self.trainer.min_epochs or (self.trainer.min_steps or 0) > 0):
            raise ConfigError(
                f"trainer.min_epochs {self.trainer.min_epochs} and min_steps {self.trainer.min_steps} may not fit in "
                "time_budget; remove them, or the budget."
            )
        self.progress = Progress(math.inf, self.budget, **self.clock)
        self.clock, self._epoch_ended = {}, None
        return []

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
        self.progress.total_steps = total
        self.progress.refuse_no_time(self._agreed(self.progress.seconds))
        self._limit_val_batches = self.trainer.limit_val_batches
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.warmup_share()
        self.progress.pause_ended()

    def warmup_share(self) -> float:
        """Return the warm-up's share of the run.

        Raises:
            ConfigError: If it is as long as the run, or its share is unknown.
        """
        config, total = self.optimizer_config, self.progress.total_steps
        if config.warmup_epochs is None and config.warmup_steps is None:
            return 0.05
        per_epoch = steps_per_epoch(self.trainer)
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
        share, room = self._agreed((self.progress.share(self.trainer.global_step), self.progress.fits_validation()))
        self._apply_schedules(optimizer, share)  # type: ignore[arg-type]
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._terms.clear()
        self.after_optimizer_step(share)
        self.progress.step_ended()
        if share >= 1.0:
            # The figures of a run are those of its last weights: validate whatever the epoch's number.
            self.trainer.should_stop = True
            if self.trainer.check_val_every_n_epoch is not None:
                self.trainer.check_val_every_n_epoch = 1
        if self.budget is not None:
            # A validation that would cross the bell gives way to training and the last one.
            self.trainer.limit_val_batches = self._limit_val_batches if room or share >= 1.0 else 0

    def _agreed(self, value: Any) -> Any:
        """Return rank zero's value on every rank: a budget has one clock, or weights and numbers of steps part."""
        return value if self.budget is None or self.trainer.world_size == 1 else self.trainer.strategy.broadcast(value)

    # ------------------------------------------------------------------------------------------ the clock of a budget

    def on_validation_start(self) -> None:
        """Time the validation, its loaders' start included: the last one has to fit in the budget."""
        now = self.progress.seconds
        mark = None if self.trainer.sanity_checking else self.progress.mark
        self._validation_began = now if mark is None else mark

    def on_validation_end(self) -> None:
        """Keep back from the budget what a validation takes."""
        took = self.progress.seconds - self._validation_began
        if self.trainer.sanity_checking:
            self.progress.rehearsal = took
        else:
            self.progress.validation_ended(took)
            self.progress.pause_ended()

    def on_train_epoch_end(self) -> None:
        """Time the end of an epoch: checkpoints are written after this hook and before the next epoch's first."""
        self._epoch_ended = self.progress.seconds

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Check that the step is finite, and clip with the same norm.

        Raises:
            RunStopped: If a loss term or gradient is not finite: before the optimizer, the EMA or a checkpoint has it.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            self._stop_not_finite()
        if gradient_clip_algorithm == "value" and gradient_clip_val:
            # Lightning's own refuses fused optimizers under autocast, for the sake of loss scaling, which bf16 lacks.
            clip_grad_value_([p for g in optimizer.param_groups for p in g["params"]], gradient_clip_val or 0.0)
        elif gradient_clip_val:
            clip_grads_with_norm_([p for g in optimizer.param_groups for p in g["params"]], gradient_clip_val, norm)
        if self._logs_now():
            self.log("train/grad_norm", norm)

    def _stop_not_finite(self) -> None:
        bad = sorted({name for terms in self._terms for name, x in terms.items() if not torch.isfinite(x)})
        raise RunStopped(
            f"step {self.trainer.global_step}: {', '.join(bad) if bad else 'the gradient'} is not finite; "
            "lower optimizer.lr, set trainer.gradient_clip_val, or use precision 32-true. "
            "Neither the target encoder nor a checkpoint took this step."
        )

    # ---------------------------------------------------------------------------------------------------- the logging

    def _logs_now(self) -> bool:
        """Return whether the running batch ends on a logged step."""
        trainer: Any = self.trainer  # these two are set by a connector, unseen by type checkers
        return (trainer.global_step + 1) % trainer.log_every_n_steps == 0 or bool(trainer.fast_dev_run)

    def log_terms(self, terms: dict[str, Tensor]) -> None:
        """Keep a micro-batch's terms for the finite check, and log them every n steps from one stacked tensor.

        A `self.log` call a term and step would cost milliseconds and, on an accelerator, a wait for each.
        """
        detached = {name: value.detach() for name, value in terms.items()}
        self._terms.append(detached)
        if self._logs_now():
            values = torch.stack([v.float() for v in detached.values()]).tolist()
            logged = {f"train/{name}": value for name, value in zip(detached, values, strict=True)}
            group = self.trainer.optimizers[0].param_groups[0]
            logged["train/lr"], logged["train/weight_decay"] = group["lr"], group["weight_decay"]
            self.log_dict(logged)

    # -------------------------------------------------------------------------------------------------- the checkpoint

    def on_train_epoch_start(self) -> None:
        """Log the share of the epoch that each dataset of a mixture gives; keep back what an epoch's end takes."""
        if self._epoch_ended is not None:
            self.progress.closing = max(self.progress.closing, self.progress.seconds - self._epoch_ended)
        self.progress.pause_ended()
        shares = getattr(getattr(self.trainer, "datamodule", None), "share_drawn", None)
        if callable(shares):
            drawn = shares(self.trainer.current_epoch)
            if len(drawn) > 1:
                self.log_dict({f"data/share/{name}": share for name, share in drawn.items()})

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
        """Store what the run's clock shows, so that a time budget spans resumes, and what data it draws."""
        checkpoint["hjepa_seconds"] = self.progress.seconds
        checkpoint["hjepa_end"] = {"validation": self.progress.validation, "closing": self.progress.closing}
        checkpoint["hjepa_trainer"] = self.trainer_settings()
        settings = getattr(getattr(self.trainer, "datamodule", None), "settings", None)
        if callable(settings):
            checkpoint["hjepa_data"] = settings()

    @_restricted_classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint as Lightning does; what `encoder.pretrained` names is not read again, and may be gone."""
        with weights_follow():
            return super().load_from_checkpoint(*args, **kwargs)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the clock of the earlier run, and what its end will take: a resumed run has no sanity check."""
        self.progress.spent = max(self.progress.spent, float(checkpoint.get("hjepa_seconds", 0.0)))
        end = checkpoint.get("hjepa_end", {"validation": 0.0, "closing": 0.0})
        self.progress.rehearsal, self.progress.closing = float(end["validation"]), float(end["closing"])
