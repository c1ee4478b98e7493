"""VICReg: invariance, variance and covariance (arXiv:2105.04906, section 4.1)."""

import torch
from torch import Tensor

from hjepa_pl.losses.view_loss import paired_views


def invariance_term(views: Tensor, partial: int = 0) -> Tensor:
    """Return the mean squared distance between the pairs of views (V, B, P) of one image, see `paired_views`."""
    left, right = paired_views(views, partial)
    return (left - right).square().mean()


def _centered(samples: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """Return the samples less their mean, with zeros for those that do not count, and the number that count less 1."""
    if valid is None:
        return samples - samples.mean(dim=0), len(samples) - 1
    n = valid.sum().clamp(min=2)
    return (samples - valid @ samples / n) * valid[:, None], n - 1


def variance_term(samples: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the hinge that asks each of the D columns of (N, D) for a standard deviation of at least 1.

    Args:
        samples: (N, D).
        valid: (N,), 1 for the samples that count and 0 for the others, which may hold anything finite; null is all.
    """
    x, n = _centered(samples, valid)
    return torch.relu(1.0 - torch.sqrt(x.square().sum(dim=0) / n + 1e-4)).mean()


def covariance_term(samples: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the sum of squared off-diagonal covariances of (N, D), divided by D; arguments as `variance_term`'s."""
    x, n = _centered(samples, valid)
    covariance = (x.T @ x) / n
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.shape[1]


def vicreg(
    views: Tensor,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    partial: int = 0,
    valid: Tensor | None = None,
) -> Tensor:
    """Return VICReg of views (V, B, P), float32, all ranks' images.

    Variance and covariance are averaged over views, where the paper's equation 6 sums them over its two, and its
    released code sums the covariance only: that is `covariance` 2 here. With one view there is no invariance term. The
    first `partial` views saw a part of the image only and are not compared with each other. `valid` (B,) says which
    rows count for variance and covariance, see `variance_term`.
    """
    terms = [variance * variance_term(v, valid) + covariance * covariance_term(v, valid) for v in views]
    spread = torch.stack(terms).mean()
    return spread + (invariance * invariance_term(views, partial) if len(views) > 1 else 0.0)
