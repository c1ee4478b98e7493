"""Finite check: a run stops at a gradient, weight or buffer that is not finite, before it is used or stored."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from hjepa_pl.modules.term_log import TermLog
from hjepa_pl.types import RunStopped


class _Pending(NamedTuple):
    """Finite check of a step, copied to the host asynchronously."""

    step: int
    finite: Tensor
    """Scalar, bool, on the host; valid after `copied`."""
    copied: Any
    """CUDA event."""
    terms: list[dict[str, Tensor]]


class FiniteCheck:
    """Checks the gradient norm of each step, and the model's state before it is evaluated or stored.

    On a CPU the norm is read at once. On CUDA that would stall the device: the fused optimizer skips a step that is not
    finite by a flag on the device, and the host reads the result one step later.

    Args:
        module: The module that trains.
        log: Has the terms of the current step, for the message.
    """

    def __init__(self, module: pl.LightningModule, log: TermLog) -> None:
        self.module, self.log = module, log
        self._pending: _Pending | None = None

    def check_step(self, optimizer: Optimizer) -> Tensor:
        """Return the norm of the gradients, after checking that it is finite.

        Raises:
            RunStopped: If a loss term or gradient is not finite, before the optimizer, the EMA or a checkpoint uses it.
        """
        norm = get_total_norm([p.grad for p in _parameters(optimizer) if p.grad is not None])
        self.check_pending()
        if self.defers(optimizer, norm.device):
            self._defer(optimizer, torch.isfinite(norm))
        elif not bool(torch.isfinite(norm)):
            raise self._stopped(self.module.trainer.global_step, self.log.terms)
        return norm

    def defers(self, optimizer: Optimizer, device: torch.device) -> bool:
        """Return whether the check is read one step later: on CUDA, with an optimizer that can skip a step.

        Apple's fused AdamW has the same flag but does not read `found_inf` (PyTorch's FusedAdamWKernelImpl.mm), and
        would take a step that is not finite. So the host waits there.
        """
        return device.type == "cuda" and getattr(optimizer, "_step_supports_amp_scaling", False)

    def _defer(self, optimizer: Any, finite: Tensor) -> None:
        """Set the optimizer's flag on the device, and start the copy to the host."""
        optimizer.found_inf = (~finite).float()  # as torch.amp.GradScaler does
        on_device = finite.device.type == "cuda"
        host = torch.empty((), dtype=torch.bool, pin_memory=on_device).copy_(finite, non_blocking=True)
        event = torch.cuda.Event() if on_device else None
        if event is not None:
            event.record()
        self._pending = _Pending(self.module.trainer.global_step, host, event, list(self.log.terms))

    def check_pending(self) -> None:
        """Read the previous step's result.

        Raises:
            RunStopped: If that step was not finite.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.copied is not None:
            pending.copied.synchronize()
        if not bool(pending.finite):
            raise self._stopped(pending.step, pending.terms)

    def check_state(self) -> None:
        """Check the previous step, and all weights and buffers: a batch norm's statistics have no gradient or loss.

        Raises:
            RunStopped: If one is not finite.
        """
        self.check_pending()
        name = _first_weight(self.module.state_dict())
        if name is None:
            return
        trainer = self.module.trainer
        if trainer.state.fn != "fit":
            raise RunStopped(f"{name} is not finite, and neither is the model's output; use another checkpoint.")
        raise RunStopped(
            f"step {trainer.global_step}: {name} is not finite; lower optimizer.lr, and resume from the last "
            "checkpoint, which is finite."
        )

    def _stopped(self, step: int, terms: list[dict[str, Tensor]]) -> RunStopped:
        """Return the error of a skipped step; with several processes each names its own cause."""
        # Weights but not buffers: a batch norm's statistics include this step, so they are a consequence.
        cause = _first_weight(dict(self.module.named_parameters())) or _first_term(terms)
        trainer = self.module.trainer
        if cause is None:
            cause = "the gradient" if trainer.world_size == 1 else "the gradient of this or another process"
        precision = "" if str(trainer.precision) == "32-true" else ", or use trainer.precision=32-true"
        return RunStopped(
            f"step {step}: {cause} is not finite; lower optimizer.lr, set trainer.gradient_clip_val{precision}. "
            "The step was skipped: trained weights and checkpoints are those before it."
        )


def clip_gradients(
    optimizer: Optimizer, norm: Tensor, value: int | float | None = None, algorithm: str | None = None
) -> None:
    """Clip gradients by value or by their norm.

    Lightning's own clipping rejects fused optimizers under autocast, because of loss scaling, which bf16 does not use.

    Args:
        optimizer: Has the parameters.
        norm: Of all gradients, scalar.
        value: Largest value or norm; None and 0 do not clip.
        algorithm: 'value', or 'norm' and None for the norm.
    """
    if not value:
        return
    if algorithm == "value":
        clip_grad_value_(_parameters(optimizer), value)
    else:
        clip_grads_with_norm_(_parameters(optimizer), value, norm)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _first_weight(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that is not finite; one device synchronization if there is none."""
    floats = {name: x.detach() for name, x in state.items() if x.is_floating_point() and not x.is_meta}
    if not floats or bool(torch.isfinite(get_total_norm(list(floats.values())))):
        return None
    return next((f"the model's {name}" for name, x in floats.items() if not torch.isfinite(x).all()), None)


def _first_term(terms: list[dict[str, Tensor]]) -> str | None:
    """Return the first term that is not finite in the order of computation; later ones are consequences."""
    for of_batch in terms:
        bad = [name for name, x in of_batch.items() if not torch.isfinite(x)]
        raw = [name for name in bad if name != "loss" and not name.endswith("_weighted")]
        if bad:
            return (raw or sorted(bad, key="loss".__eq__))[0]
    return None
