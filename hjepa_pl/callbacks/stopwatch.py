"""How long a run's steps, epochs and validations take, and which parts a step's time goes to."""

import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import Profiler
from torch import nn

from hjepa_pl.callbacks.pace import images_in

_PARTS = {
    "train_dataloader_next": "data",
    "batch_to_device": "data",
    "training_step": "training_step",
    "backward": "backward",
    "optimizer_step": "optimizer_step",
}
"""What Lightning profiles, by the end of the action's name."""


def now(device: torch.device) -> float:
    """Return the time in seconds, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


class Parts(Profiler):
    """Sums the seconds of a step's parts while it is the Trainer's profiler; each part waits for the device.

    Attributes:
        seconds: Of each part; those of target encoder, predictor and EMA are within those of Lightning's hooks.
    """

    def __init__(self, module: Any, device: torch.device) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self._device = device
        self._began: dict[str, list[float]] = {}
        self._module = module
        self._hooks: list[Any] = []

    def start(self, action_name: str) -> None:
        """Begin a part, if the action is one."""
        part = _PARTS.get(action_name.rpartition(".")[2])
        if part is not None:
            self._start(part)

    def stop(self, action_name: str) -> None:
        """End it."""
        part = _PARTS.get(action_name.rpartition(".")[2])
        if part is not None:
            self._stop(part)

    def _start(self, part: str) -> None:
        self._began.setdefault(part, []).append(now(self._device))

    def _stop(self, part: str) -> None:
        began = self._began.get(part, [])
        if not began:  # it began before the first measured step
            return
        first = began.pop()
        if not began:  # a part within itself counts once
            self.seconds[part] = self.seconds.get(part, 0.0) + now(self._device) - first

    def install(self) -> None:
        """Time the networks and the moving average too."""
        for name, part in (("target_encoder", "target"), ("predictor", "predictor")):
            network = getattr(self._module, name, None)
            if isinstance(network, nn.Module):
                self._hooks.append(network.register_forward_pre_hook(lambda *_, p=part: self._start(p)))
                self._hooks.append(network.register_forward_hook(lambda *_, p=part: self._stop(p)))
        ema = getattr(self._module, "ema", None)
        if ema is not None:
            update = ema.update

            def timed(*args: Any) -> None:
                self._start("ema")
                update(*args)
                self._stop("ema")

            ema.update = timed

    def remove(self) -> None:
        """Take the timers off."""
        for hook in self._hooks:
            hook.remove()
        if getattr(self._module, "ema", None) is not None:
            del self._module.ema.update

    def shares(self, wall: float) -> dict[str, float]:
        """Return the share of each part in so many seconds; they sum to 1 with `other`."""
        took = {p: self.seconds.get(p, 0.0) for p in (*_PARTS.values(), "target", "predictor", "ema")}
        parts = {
            "data": took["data"],
            "forward": took["training_step"] - took["target"] - took["predictor"],
            "target": took["target"],
            "predictor": took["predictor"],
            "backward": took["backward"],
            "optimizer": took["optimizer_step"] - took["training_step"] - took["backward"] - took["ema"],
            "ema": took["ema"],
        }
        parts["other"] = wall - sum(parts.values())
        return {name: seconds / wall for name, seconds in parts.items()}


class Stopwatch(pl.Callback):
    """Times a run, and ends it after so many steps, with a last validation as every run has.

    Where an epoch is one step, the end of the epoch counts to the step.

    Args:
        warmup: Optimizer steps before the measured ones.
        steps: Optimizer steps to measure.
        seconds: After which no more are measured, five at least.
        parts: Steps of a second pass, in which the parts are timed; 0 for none.
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
        """Seconds that the end of an epoch and the start of the next take, a step and validation left out."""
        self.validations: list[float] = []
        self.images = 0
        """Of the last batch, in one process."""
        self.shares: dict[str, float] = {}
        self.finished = 0.0
        """Seconds from the last step to the end, validation left out."""
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
        """Start the clock of the whole run, where its summary does."""
        self._began = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how long the start took, the validation of the untrained network included."""
        self._last = now(self._device(trainer))
        self.started = self._last - self._began
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the time of a step, and go on to the next phase."""
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
            self._stop(trainer)
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
        self._stop(trainer)

    def _close_parts(self, at: float) -> None:
        """Take the shares; what lies between is a step each, or the end of an epoch."""
        if self._parts is not None and not self.shares:
            self.shares = self._parts.shares(at - self._parts_began - self._validation)
            self._parts.remove()

    def _stop(self, trainer: pl.Trainer) -> None:
        trainer.should_stop = True
        if trainer.check_val_every_n_epoch is not None:
            trainer.check_val_every_n_epoch = 1

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the next step be the first of an epoch, unless each is."""
        self._new_epoch = trainer.num_training_batches > trainer.accumulate_grad_batches

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of the steps."""
        self._validation_began = now(self._device(trainer))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let it go on."""
        if not trainer.sanity_checking:
            self.validations.append(now(self._device(trainer)) - self._validation_began)
            self._paused += self.validations[-1]
            if self._parts is not None and not self.shares:
                self._validation += self.validations[-1]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how long the end took."""
        at = now(self._device(trainer))
        self._close_parts(at)
        self.finished = at - self._last - self._paused
