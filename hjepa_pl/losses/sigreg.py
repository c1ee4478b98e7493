"""SIGReg: embeddings are pushed towards an isotropic Gaussian (LeJEPA, arXiv:2511.08544)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hjepa_pl.functional.counters import normal

_AT_ONCE = 2**22
"""Angles in memory at a time. Tokens have many: 256 images of 68 tokens, 256 directions and 17 knots are 76 million."""


class _Spectrum(torch.autograd.Function):
    """Weighted means over N samples (N, S) of cos(t x) and sin(t x), (S, knots) each.

    Autograd would keep every angle until the backward pass. Here some columns follow others, the samples alone are
    kept, and the angles are made again.
    """

    @staticmethod
    def forward(ctx: Any, samples: Tensor, t: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(samples, t, share)
        weight, found = share[:, None, None], []
        for part in samples.split(_columns(samples, t), dim=1):
            angle = part[..., None] * t
            found.append((angle.cos().mul_(weight).sum(dim=0), angle.sin_().mul_(weight).sum(dim=0)))
        cos, sin = zip(*found, strict=True)
        return torch.cat(cos), torch.cat(sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_cos: Tensor, by_sin: Tensor) -> tuple[Tensor, None, None]:
        samples, t, share = ctx.saved_tensors
        columns, grads = _columns(samples, t), []
        by_cos, by_sin = by_cos * t, by_sin * t
        parts = (x.split(columns, dim=d) for x, d in ((samples, 1), (by_cos, 0), (by_sin, 0)))
        for part, c, s in zip(*parts, strict=True):
            angle = part[..., None] * t
            grads.append(angle.cos().mul_(s).sum(dim=2) - angle.sin_().mul_(c).sum(dim=2))
        return torch.cat(grads, dim=1) * share[:, None], None, None


def _columns(samples: Tensor, t: Tensor) -> int:
    return max(1, _AT_ONCE // (len(samples) * len(t)))


def epps_pulley(samples: Tensor, knots: int = 17, t_max: float = 3.0, valid: Tensor | None = None) -> Tensor:
    """Return the Epps-Pulley statistic of each column against N(0, 1), without the factor of the sample size.

    The integral over t in [-t_max, t_max] of |mean exp(itx) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), by the trapezoid rule
    on the half line (the integrand is even), as LeJEPA's minimal code has it.

    Args:
        samples: (N, S): N samples of S variables.
        knots: Points on [0, t_max].
        t_max: End of the range, in inverse units of the samples; LeJEPA's is 3, beyond which little weight is left.
        valid: (N,), 1 for the samples that count and 0 for the others, which may hold anything finite; null is all.

    Returns:
        (S,) statistics; with the defaults N times one is about 1 for Gaussian samples.
    """
    t = torch.linspace(0.0, t_max, knots, device=samples.device, dtype=samples.dtype)
    gauss = torch.exp(-t.square() / 2)
    weight = torch.full_like(t, 2 * t_max / (knots - 1))
    weight[0] = weight[-1] = t_max / (knots - 1)  # the trapezoid's ends count half
    share = samples.new_ones(len(samples)) if valid is None else valid
    cos, sin = _Spectrum.apply(samples, t, share / share.sum().clamp(min=1))
    return ((cos - gauss).square() + sin.square()) @ (weight * gauss)


def sigreg(
    samples: Tensor,
    key: int,
    num_slices: int = 256,
    knots: int = 17,
    t_max: float = 3.0,
    valid: Tensor | None = None,
) -> Tensor:
    """Return the mean Epps-Pulley statistic over random directions.

    Args:
        samples: (N, D) embeddings of all ranks, float32.
        key: Counter that the directions are drawn by.
        num_slices: Number of directions.
        knots: Points of the quadrature.
        t_max: End of its range.
        valid: (N,) which samples count, see `epps_pulley`.
    """
    directions = normal(key, (samples.shape[1], num_slices), samples.device).to(samples.dtype)
    return epps_pulley(samples @ (directions / directions.norm(dim=0)), knots, t_max, valid).mean()
