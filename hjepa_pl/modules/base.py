"""Base of the pretraining modules: every Lightning hook but the steps on a batch, in the order of a run."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import nn
from torch.optim import Optimizer

from hjepa_pl.models.pretrained import without_pretrained
from hjepa_pl.modules.check_trainer import check_epoch, check_trainer, check_warmup
from hjepa_pl.modules.clock import RunClock
from hjepa_pl.modules.finite import FiniteCheck, clip_gradients
from hjepa_pl.modules.schedule import Schedule
from hjepa_pl.modules.term_log import TermLog
from hjepa_pl.optim.budget import RunProgress
from hjepa_pl.optim.config import OptimizerConfig
from hjepa_pl.optim.groups import muon_groups, weight_decay_groups
from hjepa_pl.optim.muon import MuonAdamW
from hjepa_pl.types import ConfigError, TrainDataModule, train_data_module
from hjepa_pl.utils.malloc import keep_freed_memory
from hjepa_pl.utils.run_length import images_per_step, limited, steps_per_epoch, total_steps
from hjepa_pl.utils.settings import invalid


class PretrainModule(pl.LightningModule):
    """Trains by schedules of progress, within a time budget, and stops at a step that is not finite.

    A subclass defines `trained_modules` and the steps on a batch, and may override `prepare_fit`, `check_run` and
    `after_optimizer_step`.

    Attributes:
        clock: `RunClock`: the time budget, and the progress of the run.
        schedule: `Schedule` of the learning rate and the weight decay.
        term_log: `TermLog` of the loss terms.
        finite_check: `FiniteCheck` of gradients, weights and buffers.
    """

    def __init__(self, optimizer: OptimizerConfig, time_budget: str | None) -> None:
        super().__init__()
        self.optimizer_config = optimizer
        self.clock = RunClock(time_budget)
        self.schedule = Schedule(optimizer)
        self.term_log = TermLog(self)
        self.finite_check = FiniteCheck(self, self.term_log)

    @property
    def progress(self) -> RunProgress:
        """Progress of the current run, by steps and by the clock."""
        return self.clock.progress

    @property
    def budget(self) -> float | None:
        """Time budget of a run in seconds, or None."""
        return self.clock.budget

    @property
    def data_module(self) -> TrainDataModule | None:
        """The Trainer's data module; None for another than `TrainDataModule`, or a loader."""
        return train_data_module(getattr(self.trainer, "datamodule", None))

    def store_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Store the constructor's arguments for checkpoints; `load_from_checkpoint` passes them back.

        Unlike `save_hyperparameters` it stores plain values, equal from YAML and from Python.
        """
        self._set_hparams(dict(arguments))
        self._hparams_initial = dict(arguments)
        self._hparams_name = "kwargs"

    # ------------------------------------------------------------------------------------------------ for subclasses

    def trained_modules(self) -> list[nn.Module]:
        """Return the modules whose parameters the optimizer updates."""
        raise NotImplementedError

    def prepare_fit(self) -> None:
        """Check the data against the model and prepare networks, at the end of `setup`."""

    def check_run(self, batches: float) -> None:
        """Check a run of `batches` batches, when training starts."""

    def after_optimizer_step(self, fraction: float) -> None:
        """Run after each optimizer step, at a fraction of the run in [0, 1]."""

    # ------------------------------------------------------------------------------------------------- start of a run

    def configure_callbacks(self) -> list[pl.Callback]:
        """Start the clock and check the Trainer, in the first hook of a run, before data is read."""
        self.clock.start()
        check_trainer(self.trainer, self.budget)
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_warmup(self.optimizer_config, self.trainer)
            self.check_optimizer()
        return []

    def check_optimizer(self) -> None:
        """Set the peak learning rate, by the images of a step; check that the optimizer's settings act.

        Raises:
            ConfigError: If one cannot act on these networks and data.
        """
        if self.optimizer_config.lr_scale != "none":
            if (data := self.data_module) is None:
                raise invalid(
                    "optimizer.lr_scale", self.optimizer_config.lr_scale,
                    "needs the batch size of a MultiDatasetDataModule; use that for the data, or scale lr yourself.",
                )  # fmt: skip
            self.schedule.scale(images_per_step(self.trainer, data.batch_size))
        self.parameter_groups()

    def setup(self, stage: str) -> None:
        """Check the length of the run and the data; keep freed memory while a CPU computes."""
        if stage == "fit":
            self.check_optimizer()
        if stage == "fit" and (data := self.data_module) is not None and data.knows_epoch:
            self.check_length(data.batches_per_epoch)
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        if stage == "fit":
            self.prepare_fit()

    def check_length(self, batches: int) -> None:
        """Check the limits and the warm-up of a run, before the untrained network is evaluated.

        Args:
            batches: Of an epoch of the data.

        Raises:
            ConfigError: If they do not fit the length of the run.
        """
        trainer: Any = self.trainer
        if not trainer.fast_dev_run:
            check_epoch(trainer, batches)
            kept = limited(trainer, batches)
            self.schedule.warmup_fraction(total_steps(trainer, kept), steps_per_epoch(trainer, kept))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the clock.

        Raises:
            ConfigError: If training is resumed from the state of another optimizer.
        """
        kind = checkpoint.get("hyper_parameters", {}).get("optimizer", {}).get("kind", "adamw")
        resumes = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if resumes and kind != self.optimizer_config.kind:
            problem = f"the checkpoint has the state of {kind}; set kind to {kind}."
            raise invalid("optimizer.kind", self.optimizer_config.kind, problem)
        self.clock.load_state(checkpoint)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups; raises `ConfigError` if none is for `optimizer.kind`."""
        config = self.optimizer_config
        split = muon_groups if config.kind == "muon" else weight_decay_groups
        return split(self.trained_modules(), config.weight_decay)

    def configure_optimizers(self) -> Optimizer:
        """Return AdamW or Muon. There is no scheduler: `optimizer_step` sets learning rate and weight decay."""
        config, groups = self.optimizer_config, self.parameter_groups()
        if config.kind == "muon":
            return MuonAdamW(groups, config.lr, config.betas)
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)

    def on_train_start(self) -> None:
        """Set the length of the run and of its warm-up.

        Raises:
            ConfigError: If the run has no end, is complete, or has no time for a step.
        """
        trainer: Any = self.trainer
        total = total_steps(trainer)
        if math.isinf(total) and self.budget is None:
            raise ConfigError("the run has no end: set trainer.max_epochs, trainer.max_steps or time_budget.")
        if trainer.global_step >= total:
            raise ConfigError(
                f"the run is already complete at step {trainer.global_step} of {total:.0f}; "
                "raise trainer.max_epochs to continue it."
            )
        self.clock.begin_training(trainer, total)
        trial, resumed = bool(trainer.fast_dev_run), trainer.global_step > 0
        self.schedule.begin(total, steps_per_epoch(trainer), trial=trial, resumed=resumed)
        if not trainer.fast_dev_run:
            self.check_run(total * trainer.accumulate_grad_batches)

    # ------------------------------------------------------------------------------------- epochs, validations, steps

    def on_train_epoch_start(self) -> None:
        """Log the data of the epoch, and time the end of the previous one."""
        self.term_log.epoch_started(self.data_module)
        self.clock.epoch_started()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Check that the step is finite, and clip with the same norm.

        Raises:
            RunStopped: If it is not finite.
        """
        norm = self.finite_check.check_step(optimizer)
        clip_gradients(optimizer, norm, gradient_clip_val, gradient_clip_algorithm)
        if self.term_log.is_logged_step():
            self.log("train/grad_norm", norm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Set the schedules, step, log, and update what follows the weights."""
        step = self.trainer.global_step
        pace = self.clock.pace(self.trainer, self.device)
        fraction = self.progress.fraction(step, pace)
        self.schedule.warn_of_short_warmup(step, fraction, self.progress)
        self.schedule.apply(optimizer, fraction)  # type: ignore[arg-type]
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.term_log.step_ended()
        self.after_optimizer_step(fraction)
        self.clock.step_ended(self.trainer, fraction, validates=pace.steps_before_validation >= 1.0)

    def on_validation_start(self) -> None:
        """Check that the network to evaluate is finite, and time the validation."""
        self.finite_check.check_state()
        self.clock.validation_started(self.trainer)

    def on_validation_end(self) -> None:
        """Time the validation."""
        self.clock.validation_ended(self.trainer)

    def on_train_epoch_end(self) -> None:
        """Time the end of the epoch."""
        self.clock.epoch_ended()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the weights are finite; store the clock, and the Trainer's and the data's settings."""
        self.finite_check.check_state()
        checkpoint |= self.clock.state()
        checkpoint["hjepa_trainer"] = self.trainer_settings()
        if (data := self.data_module) is not None:
            checkpoint["hjepa_data"] = data.settings()

    def trainer_settings(self) -> dict[str, Any]:
        """Return the Trainer's settings by which a resumed run draws the same data."""
        trainer: Any = self.trainer
        return {
            "processes": trainer.world_size,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "limit_train_batches": trainer.limit_train_batches,
            "precision": str(trainer.precision),
        }

    # --------------------------------------------------------------------------------------------------- end of a run

    def on_train_end(self) -> None:
        """Check that the trained network is finite."""
        self.finite_check.check_state()

    def on_test_start(self) -> None:
        """Check that the network to evaluate is finite."""
        self.finite_check.check_state()

    def on_predict_start(self) -> None:
        """Check that the network to use is finite."""
        self.finite_check.check_state()

    def teardown(self, stage: str) -> None:
        """Return freed memory. Lightning skips this after an error; then call `keep_freed_memory(False)`."""
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory(False)

    @_restricted_classmethod
    def load_from_checkpoint(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint as Lightning does, without reading the file of `encoder.pretrained` again."""
        with without_pretrained():
            return super().load_from_checkpoint(*args, **kwargs)
