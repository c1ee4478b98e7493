"""Steps that are not finite are never taken, and end the run."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from hjepa_pl.modules.logs import SparseLogs
from hjepa_pl.types import RunStopped


class _Verdict(NamedTuple):
    """What the device says of a step, on its way to the host."""

    step: int
    finite: Tensor
    """Scalar, bool, on the host; to be read once `arrived`."""
    arrived: Any
    """CUDA event."""
    terms: list[dict[str, Tensor]]


class FiniteSteps(SparseLogs):
    """Looks at the norm of each step's gradients, and clips with it.

    A CPU reads it at once. An accelerator would have to run empty for that: CUDA's fused optimizer is told on the
    device to pass over a step that is not finite, and the host reads of it one step later.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pending: _Verdict | None = None

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
        self.read_verdict()
        if self.defers(optimizer, norm.device):
            self._send_verdict(optimizer, torch.isfinite(norm))
        elif not bool(torch.isfinite(norm)):
            raise _stopped(self.trainer.global_step, self._terms)
        if gradient_clip_algorithm == "value" and gradient_clip_val:
            # Lightning's own refuses fused optimizers under autocast, for the sake of loss scaling, which bf16 lacks.
            clip_grad_value_([p for g in optimizer.param_groups for p in g["params"]], gradient_clip_val or 0.0)
        elif gradient_clip_val:
            clip_grads_with_norm_([p for g in optimizer.param_groups for p in g["params"]], gradient_clip_val, norm)
        if self._logs_now():
            self.log("train/grad_norm", norm)

    def defers(self, optimizer: Optimizer, device: torch.device) -> bool:
        """Return whether a step is judged on the device: where it has a queue, and the optimizer can pass over one.

        Apple's fused AdamW says that it can, but is given `found_inf` and does not read it (PyTorch's
        FusedAdamWKernelImpl.mm): a step that is not finite would be taken. So the host waits there.
        """
        return device.type == "cuda" and getattr(optimizer, "_step_supports_amp_scaling", False)

    def _send_verdict(self, optimizer: Any, finite: Tensor) -> None:
        """Tell the optimizer on the device, and the host when it has time."""
        optimizer.found_inf = (~finite).float()  # torch.amp.GradScaler's way to make a fused optimizer pass
        on_device = finite.device.type == "cuda"
        host = torch.empty((), dtype=torch.bool, pin_memory=on_device).copy_(finite, non_blocking=True)
        event = torch.cuda.Event() if on_device else None
        if event is not None:
            event.record()
        self._pending = _Verdict(self.trainer.global_step, host, event, list(self._terms))

    def read_verdict(self) -> None:
        """Read what is still to be heard of the step before.

        Raises:
            RunStopped: If it was not finite.
        """
        verdict, self._pending = self._pending, None
        if verdict is None:
            return
        if verdict.arrived is not None:
            verdict.arrived.synchronize()
        if not bool(verdict.finite):
            raise _stopped(verdict.step, verdict.terms)

    def on_validation_start(self) -> None:
        """Judge no network whose last step was not finite."""
        super().on_validation_start()
        self.read_verdict()

    def on_train_end(self) -> None:
        """End no run as if its last step had been finite."""
        super().on_train_end()
        self.read_verdict()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save none after a step that was not finite."""
        self.read_verdict()
        super().on_save_checkpoint(checkpoint)


def _stopped(step: int, terms: list[dict[str, Tensor]]) -> RunStopped:
    bad = sorted({name for of_batch in terms for name, x in of_batch.items() if not torch.isfinite(x)})
    return RunStopped(
        f"step {step}: {', '.join(bad) if bad else 'the gradient'} is not finite; "
        "lower optimizer.lr, set trainer.gradient_clip_val, or use precision 32-true. "
        "No weight that is trained and no checkpoint took this step."
    )
