"""The target encoder: an exponential moving average (EMA) of the context encoder."""

import copy
from typing import TypeVar

import torch
from torch import nn

from hjepa_pl.optim.config import EMAConfig
from hjepa_pl.optim.schedules import capped_momentum, linear

M = TypeVar("M", bound=nn.Module)


class EMACallback:
    """Updates the target encoder after each optimizer step (BYOL, arXiv:2006.07733, equation 1).

    The module owns it as `module.ema` and calls it in `optimizer_step`, right after the optimizer. It is not a
    Lightning callback: those have no hook there, and one in a config could be left out or listed twice.
    """

    def __init__(self, config: EMAConfig) -> None:
        self.config = config
        self.updates = 0
        """Number of updates by this object."""

    @staticmethod
    def make_target(context: M) -> M:
        """Return a copy of an online network, frozen and in eval mode."""
        target = copy.deepcopy(context).requires_grad_(False)
        return target.eval()

    def momentum(self, progress: float, total_steps: float) -> float:
        """Return the momentum, which rises linearly to `momentum_end` as in I-JEPA's public code (BYOL: a cosine).

        Args:
            progress: Fraction of the run, in [0, 1].
            total_steps: Optimizer steps of the run.
        """
        start = capped_momentum(self.config.momentum, total_steps)
        if self.config.momentum_end is None:
            return start
        return linear(start, self.config.momentum_end, progress)

    @torch.no_grad()
    def update(self, context: nn.Module, target: nn.Module, momentum: float) -> None:
        """Set every target parameter to `momentum * target + (1 - momentum) * context`, and copy the buffers.

        Exactly this formula in this order: `lerp` and a fused multiply-add differ from it in the last bits.
        """
        targets = [p.detach() for p in target.parameters()]
        sources = [p.detach() for p in context.parameters()]
        torch._foreach_mul_(targets, momentum)
        torch._foreach_add_(targets, list(torch._foreach_mul(sources, 1.0 - momentum)))
        for target_buffer, buffer in zip(target.buffers(), context.buffers(), strict=True):
            target_buffer.copy_(buffer)
        self.updates += 1
