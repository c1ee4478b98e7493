"""Callback that times the steps, epochs and validations of a run."""

import time
from typing import Any

import lightning.pytorch as pl
import torch

from hjepa_pl.callbacks.run_status import images_in
from hjepa_pl.tools.bench.step_parts import Parts, now
from hjepa_pl.utils.run_length import end_after_step


class Stopwatch(pl.Callback):
    """Times a run, and ends it after some steps with a last validation.

    If an epoch is one step, the end of the epoch counts as part of the step.

    Args:
        warmup: Optimizer steps before the measured ones.
        steps: Optimizer steps to measure.
        seconds: Limit of the measurement; at least five steps are measured.
        parts: Further steps in which the parts of a step are timed.
    """

    def __init__(
        self,
        warmup: int,
        steps: int,
        seconds: float = float("inf"),
        parts: int = 0,
    ) -> None:
        self.warmup, self.most, self.limit, self.part_steps = warmup, steps, seconds, parts
        self.started = 0.0
        """Seconds from the setup to the first step."""
        self.warm: list[float] = []
        self.steps: list[float] = []
        """Seconds of each measured step, from the end of the one before it."""
        self.epochs: list[float] = []
        """Seconds from the last step of an epoch to the end of the first of the next, without validation."""
        self.validations: list[float] = []
        self.images = 0
        """Images of the last batch, of one process."""
        self.shares: dict[str, float] = {}
        self.finished = 0.0
        """Seconds from the last step to the end, without validation."""
        self._began = self._validation_began = 0.0
        self._last = self._paused = self._validation = 0.0
        self._step = 0
        self._new_epoch = False
        self._parts: Parts | None = None
        self._parts_began = 0.0
        self._parts_done = 0

    def _device(self, trainer: pl.Trainer) -> torch.device:
        return trainer.strategy.root_device

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the clock of the whole run."""
        self._began = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store the time of the startup, with the validation of the untrained network."""
        self._last = now(self._device(trainer))
        self.started = self._last - self._began
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Store the time of a step; start the next phase after the last."""
        self.images = images_in(batch)
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        at = now(self._device(trainer))
        took, self._last = at - self._last - self._paused, at
        self._paused = 0.0
        if self._parts is not None:
            self._next_of_parts(trainer, at)
            return
        if len(self.warm) < self.warmup:
            self.warm.append(took)
        elif self._new_epoch:
            self.epochs.append(took)
        else:
            self.steps.append(took)
        self._new_epoch = False
        spent = sum(self.steps) + sum(self.epochs)
        if len(self.steps) >= self.most or (spent > self.limit and len(self.steps) >= 5):
            self._measured(trainer, pl_module)

    def _measured(self, trainer: Any, module: pl.LightningModule) -> None:
        if not self.part_steps:
            end_after_step(trainer)
            return
        self._parts = Parts(module, self._device(trainer))
        self._parts.install()
        trainer.profiler = self._parts
        self._parts_began = now(self._device(trainer))

    def _next_of_parts(self, trainer: pl.Trainer, at: float) -> None:
        self._parts_done += 1
        if self._parts_done < self.part_steps:
            return
        assert self._parts is not None
        self._close_parts(at)
        end_after_step(trainer)

    def _close_parts(self, at: float) -> None:
        """Store the fractions of the parts."""
        if self._parts is not None and not self.shares:
            self.shares = self._parts.shares(at - self._parts_began - self._validation)
            self._parts.remove()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Mark the next step as the first of an epoch, unless every step is."""
        self._new_epoch = trainer.num_training_batches > trainer.accumulate_grad_batches

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pause the clock of the steps."""
        self._validation_began = now(self._device(trainer))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Resume the clock of the steps."""
        if not trainer.sanity_checking:
            self.validations.append(now(self._device(trainer)) - self._validation_began)
            self._paused += self.validations[-1]
            if self._parts is not None and not self.shares:
                self._validation += self.validations[-1]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store the time of the end."""
        at = now(self._device(trainer))
        self._close_parts(at)
        self.finished = at - self._last - self._paused
