"""Geometry of a set of features: uniformity, isotropy, dead dimensions, similarity of two networks."""

import torch
import torch.nn.functional as F
from torch import Tensor

_DEAD = 1e-2
"""A dimension whose standard deviation is below this fraction of their root mean square is dead."""


def uniformity(x: Tensor, t: float = 2.0) -> float:
    """Return log E exp(-t |u - v|^2) over pairs of normalized features (Wang & Isola, arXiv:2005.10242, section 4.1).

    0 if all features are equal; lower is more uniform on the sphere, about -t * 2 for D large.

    Args:
        x: (N, D), N at least 2.
        t: Sharpness.
    """
    unit = F.normalize(x.double(), dim=1)
    squared = 2 - 2 * (unit @ unit.T)
    pairs = len(x) * (len(x) - 1)
    total = (-t * squared.clamp_min(0)).exp().sum() - len(x)
    return float((total / pairs).log())


def alignment(views: Tensor) -> float:
    """Return the mean squared distance of normalized features of two views (Wang & Isola, arXiv:2005.10242, 4.1).

    0 if the views of an image have equal features; lower is better aligned.

    Args:
        views: (N, Q, D), Q at least 2: all pairs of an image's views are compared.
    """
    unit = F.normalize(views.double(), dim=2)
    count = unit.shape[1]
    mean = unit.sum(dim=1)
    within = (mean.square().sum(dim=1) - count) / (count * (count - 1))  # mean cosine over pairs
    return float((2 - 2 * within).mean())


def isotropy(x: Tensor) -> float:
    """Return min Z(c) / max Z(c) over the principal axes c, Z(c) = sum_i exp(c . x_i) (arXiv:1702.01417, section 2).

    1 if the features have no preferred direction, near 0 if they lie in a cone. Features are normalized first.

    Args:
        x: (N, D).
    """
    unit = F.normalize(x.double(), dim=1)
    axes = torch.linalg.eigh(unit.T @ unit)[1]
    partition = torch.cat([unit @ axes, -unit @ axes], dim=1).exp().sum(dim=0)  # an axis has no sign
    return float(partition.min() / partition.max())


def dead_dimensions(x: Tensor) -> float:
    """Return the percentage of dimensions whose standard deviation is below 1 % of their root mean square.

    Args:
        x: (N, D), N at least 2.

    Example:
        >>> dead_dimensions(torch.tensor([[0.0, 5.0], [1.0, 5.0]]))
        50.0
    """
    std = x.double().std(dim=0)
    return 100.0 * float((std <= _DEAD * std.square().mean().sqrt()).double().mean())


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Return the linear CKA of two networks' features of the same images (Kornblith et al., arXiv:1905.00414, eq. 3).

    1 if one is a rotation and scaling of the other, 0 if they are uncorrelated.

    Args:
        x: (N, D).
        y: (N, E), of the same images in the same order.
    """
    x, y = (z.double() - z.double().mean(dim=0) for z in (x, y))
    cross = (x.T @ y).square().sum()
    return float(cross / ((x.T @ x).norm() * (y.T @ y).norm()))
