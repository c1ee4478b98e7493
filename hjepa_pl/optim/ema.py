"""The target encoder as an exponential moving average of the context encoder."""

import copy
from typing import TypeVar

import torch
from torch import nn

from hjepa_pl.optim.config import EMAConfig
from hjepa_pl.optim.schedules import capped_momentum, linear

M = TypeVar("M", bound=nn.Module)


class EMACallback:
    """Moves the target encoder after each optimizer step (BYOL, arXiv:2006.07733, equation 1).

    The module owns it as `module.ema` and calls it in `optimizer_step`, right after the optimizer. It is not a
    Lightning callback: none of those has a hook there, and one in a config could be left out or listed twice.
    """

    def __init__(self, config: EMAConfig) -> None:
        self.config = config
        self.updates = 0
        """Number of updates made by this object."""

    @staticmethod
    def make_target(context: M) -> M:
        """Return a copy of an online network that takes no gradient and stays in eval mode."""
        target = copy.deepcopy(context).requires_grad_(False)
        return target.eval()

    def momentum(self, progress: float, total_steps: float) -> float:
        """Return the momentum at a share of the run of `total_steps` optimizer steps.

        The way to `momentum_end` is a straight line, as in I-JEPA's public code (BYOL's is a cosine).
        """
        start = capped_momentum(self.config.momentum, total_steps)
        if self.config.momentum_end is None:
            return start
        return linear(start, self.config.momentum_end, progress)

    @torch.no_grad()
    def update(self, context: nn.Module, target: nn.Module, momentum: float) -> None:
        """Set every target parameter to `momentum * target + (1 - momentum) * context`, and copy the buffers.

        Exactly this formula, in this order: `lerp` and a fused multiply-add differ from it in the last bits.
        """
        targets = [p.detach() for p in target.parameters()]
        sources = [p.detach() for p in context.parameters()]
        torch._foreach_mul_(targets, momentum)
        torch._foreach_add_(targets, list(torch._foreach_mul(sources, 1.0 - momentum)))
        for mine, theirs in zip(target.buffers(), context.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1
