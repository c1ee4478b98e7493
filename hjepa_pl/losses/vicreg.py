"""VICReg: invariance, variance and covariance (arXiv:2105.04906, section 4.1)."""

import torch
from torch import Tensor

from hjepa_pl.losses.views import paired_views


def invariance_term(views: Tensor, partial: int = 0) -> Tensor:
    """Return the mean squared distance between the pairs of views (V, B, P) of one image, see `paired_views`."""
    left, right = paired_views(views, partial)
    return (left - right).square().mean()


def variance_term(samples: Tensor) -> Tensor:
    """Return the hinge that asks each of the D columns of (N, D) for a standard deviation of at least 1."""
    return torch.relu(1.0 - torch.sqrt(samples.var(dim=0) + 1e-4)).mean()


def covariance_term(samples: Tensor) -> Tensor:
    """Return the sum of squared off-diagonal covariances of (N, D), divided by D."""
    x = samples - samples.mean(dim=0)
    covariance = (x.T @ x) / (len(x) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.shape[1]


def vicreg(
    views: Tensor, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0, partial: int = 0
) -> Tensor:
    """Return VICReg of views (V, B, P), float32, all ranks' images.

    Variance and covariance are averaged over views, where the paper's equation 6 sums them over its two, and its
    released code sums the covariance only: that is `covariance` 2 here. With one view there is no invariance term. The
    first `partial` views saw a part of the image only and are not compared with each other.
    """
    spread = torch.stack([variance * variance_term(v) + covariance * covariance_term(v) for v in views]).mean()
    return spread + (invariance * invariance_term(views, partial) if len(views) > 1 else 0.0)
