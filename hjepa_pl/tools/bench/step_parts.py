"""Profiler that splits a step into data, forward, target, predictor, backward, optimizer and EMA."""

import time
from typing import Any

import torch
from lightning.pytorch.profilers import Profiler
from torch import nn

_PARTS = {
    "train_dataloader_next": "data",
    "batch_to_device": "data",
    "training_step": "training_step",
    "backward": "backward",
    "optimizer_step": "optimizer_step",
}
"""Part of each action that Lightning profiles, by the end of the action's name."""

_WITHIN = ("training_step", "backward", "ema")
"""Parts that run within an optimizer step."""


def now(device: torch.device) -> float:
    """Return the time in seconds, after a synchronization of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


class Parts(Profiler):
    """Trainer profiler that sums the seconds of a step's parts; the device is synchronized after each.

    Attributes:
        seconds: Seconds of each part. Target encoder, predictor and EMA are included in Lightning's parts too.
    """

    def __init__(self, module: Any, device: torch.device) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self._stepping = 0.0
        """Seconds of the parts that ran within optimizer steps (not those of accumulated batches)."""
        self._device = device
        self._began: dict[str, list[float]] = {}
        self._module = module
        self._hooks: list[Any] = []

    def start(self, action_name: str) -> None:
        """Start the part of an action, if it has one."""
        part = _PARTS.get(action_name.rpartition(".")[2])
        if part is not None:
            self._start(part)

    def stop(self, action_name: str) -> None:
        """Stop the part of an action."""
        part = _PARTS.get(action_name.rpartition(".")[2])
        if part is not None:
            self._stop(part)

    def _start(self, part: str) -> None:
        self._began.setdefault(part, []).append(now(self._device))

    def _stop(self, part: str) -> None:
        began = self._began.get(part, [])
        if not began:  # started before the first measured step
            return
        first = began.pop()
        if not began:  # nested calls count once
            took = now(self._device) - first
            self.seconds[part] = self.seconds.get(part, 0.0) + took
            if part in _WITHIN and self._began.get("optimizer_step"):
                self._stepping += took

    def install(self) -> None:
        """Add timers to the networks and the EMA."""
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
        """Remove the timers."""
        for hook in self._hooks:
            hook.remove()
        if getattr(self._module, "ema", None) is not None:
            del self._module.ema.update

    def shares(self, wall: float) -> dict[str, float]:
        """Return the fraction of each part in `wall` seconds; with `other` they sum to 1."""
        took = {p: self.seconds.get(p, 0.0) for p in (*_PARTS.values(), "target", "predictor", "ema")}
        parts = {
            "data": took["data"],
            "forward": took["training_step"] - took["target"] - took["predictor"],
            "target": took["target"],
            "predictor": took["predictor"],
            "backward": took["backward"],
            "optimizer": took["optimizer_step"] - self._stepping,
            "ema": took["ema"],
        }
        parts["other"] = wall - sum(parts.values())
        return {name: seconds / wall for name, seconds in parts.items()}
