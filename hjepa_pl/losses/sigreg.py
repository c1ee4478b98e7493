"""SIGReg: sketched isotropic Gaussian regularization (LeJEPA, arXiv:2511.08544)."""

from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.autograd.function import once_differentiable

from hjepa_pl.functional.counters import Stream, hash_int, normal
from hjepa_pl.losses.base import Regularizer, Weight, as_views
from hjepa_pl.utils.settings import Count, Hint, settings

_MAX_ANGLES = 2**22
"""Angles in memory at a time. Tokens have many: 256 images of 68 tokens, 256 directions and 17 knots are 76 million."""


@settings("regularizers")
class SIGReg(Regularizer):
    r"""Distance of the embeddings from an isotropic Gaussian (LeJEPA, https://arxiv.org/abs/2511.08544, section 4).

    The mean, over random unit directions a, of the Epps-Pulley statistic of the projections a z against N(0, 1):

    .. math::
        \int_{-t_{max}}^{t_{max}}
            \left| \frac{1}{N} \sum_n e^{i t a^\top z_n} - e^{-t^2/2} \right|^2 e^{-t^2/2} \, dt

    Times N it is about 1 where the embeddings are Gaussian. The directions depend on `key` only: the same on every
    rank, and others at each step.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> z = torch.randn(256, 16)  # 256 images
        >>> loss = SIGReg(num_slices=64)
        >>> float(loss(0.1 * z, key=1)) > 10 * float(loss(z, key=1))  # collapsed, against Gaussian
        True
    """

    kind = "sigreg"

    weight: Weight = 5.0
    """Weight of the term in the loss; 2 to 20 is sensible."""
    num_slices: Count = 256
    """Number of random directions."""
    knots: Annotated[int, Ge(5)] = 17
    """Points of the quadrature on [0, t_max]."""
    t_max: Annotated[
        float, Ge(1), Le(10), Hint("smaller cannot tell a Gaussian from other distributions, larger adds noise; use 3")
    ] = 3.0
    """End of the quadrature's range."""

    def __call__(self, embeddings: Tensor, *, partial: int = 0, valid: Tensor | None = None, key: int = 0) -> Tensor:
        """Return the mean of the views' statistics; `partial` has no effect. See `Regularizer.__call__`."""
        views, key = as_views(embeddings), hash_int(key, Stream.SLICES)
        return torch.stack([sigreg(v, key, self.num_slices, self.knots, self.t_max, valid) for v in views]).mean()


class _Spectrum(torch.autograd.Function):
    """Weighted means over N samples (N, S) of cos(t x) and sin(t x), (S, knots) each.

    Autograd would keep every angle until the backward pass. Here columns are processed in parts, only the samples are
    kept, and the angles are recomputed.
    """

    @staticmethod
    def forward(ctx: Any, samples: Tensor, t: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(samples, t, fraction)
        weight, sums = fraction[:, None, None], []
        for part in samples.split(_columns(samples, t), dim=1):
            angle = part[..., None] * t
            sums.append((angle.cos().mul_(weight).sum(dim=0), angle.sin_().mul_(weight).sum(dim=0)))
        cos, sin = zip(*sums, strict=True)
        return torch.cat(cos), torch.cat(sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_cos: Tensor, by_sin: Tensor) -> tuple[Tensor, None, None]:
        samples, t, fraction = ctx.saved_tensors
        columns, grads = _columns(samples, t), []
        by_cos, by_sin = by_cos * t, by_sin * t
        parts = (x.split(columns, dim=d) for x, d in ((samples, 1), (by_cos, 0), (by_sin, 0)))
        for part, c, s in zip(*parts, strict=True):
            angle = part[..., None] * t
            grads.append(angle.cos().mul_(s).sum(dim=2) - angle.sin_().mul_(c).sum(dim=2))
        return torch.cat(grads, dim=1) * fraction[:, None], None, None


def _columns(samples: Tensor, t: Tensor) -> int:
    return max(1, _MAX_ANGLES // (len(samples) * len(t)))


def epps_pulley(samples: Tensor, knots: int = 17, t_max: float = 3.0, valid: Tensor | None = None) -> Tensor:
    """Return the Epps-Pulley statistic of each column against N(0, 1), without the factor of the sample size.

    The integral over t in [-t_max, t_max] of |mean exp(itx) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), by the trapezoid rule
    on the half line (the integrand is even), as in LeJEPA's minimal code.

    Args:
        samples: (N, S): N samples of S variables.
        knots: Points on [0, t_max].
        t_max: End of the range, in inverse units of the samples; LeJEPA uses 3, beyond which little weight is left.
        valid: (N,), 1 for the samples that count and 0 for others, whose values are arbitrary but finite; None counts
            all.

    Returns:
        (S,) statistics; with the defaults, N times a statistic is about 1 for Gaussian samples.
    """
    t = torch.linspace(0.0, t_max, knots, device=samples.device, dtype=samples.dtype)
    gauss = torch.exp(-t.square() / 2)
    weight = torch.full_like(t, 2 * t_max / (knots - 1))
    weight[0] = weight[-1] = t_max / (knots - 1)  # the trapezoid's ends count half
    count = samples.new_ones(len(samples)) if valid is None else valid
    cos, sin = _Spectrum.apply(samples, t, count / count.sum().clamp(min=1))
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
        key: Counter of the directions.
        num_slices: Number of directions.
        knots: Points of the quadrature.
        t_max: End of its range.
        valid: (N,), the samples that count, see `epps_pulley`.
    """
    directions = normal(key, (samples.shape[1], num_slices), samples.device).to(samples.dtype)
    return epps_pulley(samples @ (directions / directions.norm(dim=0)), knots, t_max, valid).mean()
