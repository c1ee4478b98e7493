"""Steps and networks that are not finite end the run: none is taken, judged or kept."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from hjepa_pl.modules.term_log import SparseLogs
from hjepa_pl.types import RunStopped


class _FiniteCheck(NamedTuple):
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
        self._pending: _FiniteCheck | None = None

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
            raise self._stopped(self.trainer.global_step, self._terms)
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
        self._pending = _FiniteCheck(self.trainer.global_step, host, event, list(self._terms))

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
            raise self._stopped(verdict.step, verdict.terms)

    def _stopped(self, step: int, terms: list[dict[str, Tensor]]) -> RunStopped:
        """Return the sentence on a step that was not taken; with several processes each names what is its own."""
        # Not the buffers: a batch norm has seen this step, and is what it spoilt.
        cause = _first_bad(dict(self.named_parameters())) or _first_term(terms)
        if cause is None:
            cause = "the gradient" if self.trainer.world_size == 1 else "the gradient of this or another process"
        precision = "" if str(self.trainer.precision) == "32-true" else ", or use trainer.precision 32-true"
        return RunStopped(
            f"step {step}: {cause} is not finite; lower optimizer.lr, set trainer.gradient_clip_val{precision}. "
            "No weight that is trained and no checkpoint took this step."
        )

    # ------------------------------------------------------------------------------------------------ what is kept

    def check_state(self) -> None:
        """Look at all that the model keeps: a batch norm's running figures pass no gradient and no loss of training.

        Raises:
            RunStopped: If a weight or buffer is not finite.
        """
        self.read_verdict()
        bad = _first_bad(self.state_dict())
        if bad is None:
            return
        if self.trainer.state.fn != "fit":
            raise RunStopped(f"{bad} is not finite, and so is all that the network gives; take another checkpoint.")
        raise RunStopped(
            f"step {self.trainer.global_step}: {bad} is not finite; lower optimizer.lr, and go on from the last "
            "checkpoint, which is from before that."
        )

    def on_validation_start(self) -> None:
        """Judge no network that is not finite, or whose last step was not."""
        super().on_validation_start()
        self.check_state()

    def on_test_start(self) -> None:
        """Judge no network that is not finite."""
        super().on_test_start()
        self.check_state()

    def on_predict_start(self) -> None:
        """Write no features of a network that is not finite."""
        super().on_predict_start()
        self.check_state()

    def on_train_end(self) -> None:
        """End no run as if it had stayed finite."""
        super().on_train_end()
        self.check_state()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save none that is not finite, or after a step that was not."""
        self.check_state()
        super().on_save_checkpoint(checkpoint)


def _first_bad(state: Mapping[str, Tensor]) -> str | None:
    """Return the first tensor of a model that is not finite, in words; there is one wait for the device if none is."""
    floats = {name: x.detach() for name, x in state.items() if x.is_floating_point() and not x.is_meta}
    if not floats or bool(torch.isfinite(get_total_norm(list(floats.values())))):
        return None
    return next((f"the model's {name}" for name, x in floats.items() if not torch.isfinite(x).all()), None)


def _first_term(terms: list[dict[str, Tensor]]) -> str | None:
    """Return the first term that is not finite in the order of computation: those behind it are its consequences."""
    for of_batch in terms:
        bad = [name for name, x in of_batch.items() if not torch.isfinite(x)]
        raw = [name for name in bad if name != "loss" and not name.endswith("_weighted")]
        if bad:
            return (raw or sorted(bad, key="loss".__eq__))[0]
    return None
