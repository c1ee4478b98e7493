"""VICReg: invariance, variance and covariance (arXiv:2105.04906, section 4.1)."""

import torch
from torch import Tensor


def invariance_term(views: Tensor) -> Tensor:
    """Return the mean squared distance between all pairs of views (V, B, P) of one image."""
    pairs = torch.combinations(torch.arange(len(views), device=views.device))
    return (views[pairs[:, 0]] - views[pairs[:, 1]]).square().mean()


def variance_term(samples: Tensor) -> Tensor:
    """Return the hinge that asks each of the D columns of (N, D) for a standard deviation of at least 1."""
    return torch.relu(1.0 - torch.sqrt(samples.var(dim=0) + 1e-4)).mean()


def covariance_term(samples: Tensor) -> Tensor:
    """Return the sum of squared off-diagonal covariances of (N, D), divided by D."""
    x = samples - samples.mean(dim=0)
    covariance = (x.T @ x) / (len(x) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.shape[1]


def vicreg(views: Tensor, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> Tensor:
    """Return VICReg of views (V, B, P), float32, all ranks' images.

    Variance and covariance are averaged over views. With one view there is no invariance term.
    """
    spread = torch.stack([variance * variance_term(v) + covariance * covariance_term(v) for v in views]).mean()
    return spread + (invariance * invariance_term(views) if len(views) > 1 else 0.0)
