"""SIGReg: embeddings are pushed towards an isotropic Gaussian (LeJEPA, arXiv:2511.08544)."""

import torch
from torch import Tensor

from hjepa_pl.functional.counters import normal


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
    angle = samples[..., None] * t  # (N, S, knots)
    error = (_mean(angle.cos(), valid) - gauss).square() + _mean(angle.sin(), valid).square()
    return error @ (weight * gauss)


def _mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean of (N, ...) over the rows that count; zero where none does."""
    if valid is None:
        return x.mean(dim=0)
    return torch.tensordot(valid / valid.sum().clamp(min=1), x, dims=1)


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
