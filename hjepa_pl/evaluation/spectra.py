"""Label-free estimates of the quality of features, from spectra: RankMe, alpha-ReQ and LiDAR.

Each is computed in float64 on the CPU and is NaN if a feature is not finite. They compare networks on the same images;
all are bounded by the number of images, so figures of different numbers of images are not comparable.
"""

import math

import torch
from torch import Tensor

from hjepa_pl.evaluation.threads import one_thread
from hjepa_pl.types import ConfigError

_EPSILON = 1e-7
"""Added to each probability in `rankme` and `lidar`, as in the papers."""
_RIDGE = 1e-4
"""`delta` of LiDAR: added to the diagonal of the within-image covariance."""
_NOISE = 1e-10
"""Eigenvalues below this fraction of the power of the features are rounding errors of float32 features."""


def rankme(features: Tensor) -> float:
    """Return RankMe (Garrido et al., https://arxiv.org/abs/2210.02885, equation 1), higher is better.

    exp(-sum_k p_k log p_k) with p_k = s_k / sum_j s_j + 1e-7, for the singular values s of the feature matrix, which is
    not centered: 1 where all features are multiples of one vector, D where all directions are equally strong.

    Args:
        features: (N, D); N at least 2, and better some times D.

    Example:
        >>> round(rankme(torch.eye(4)), 3)
        4.0
    """
    x = _double(features, 2)
    if x is None:
        return math.nan
    with one_thread():
        gram = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
        powers = torch.linalg.eigvalsh(gram)
        powers = torch.where(powers > _NOISE * powers.sum(), powers, 0.0)
    return _exp_entropy(powers.sqrt())


def alpha_req(features: Tensor) -> float:
    """Return the exponent of the covariance spectrum (alpha-ReQ, Agrawal et al., NeurIPS 2022): best near 1.

    The eigenvalues of the covariance, largest first, are fitted by l_j = c j^-alpha: least squares of log l_j on log j
    with weights 1 / j, which weigh equal intervals of log j alike (Stringer et al., 2019). The fit uses j up to half of
    min(N - 1, D), as the smallest eigenvalues of a sample fall below those of its distribution, and at least three.
    Above 1 few directions carry the features, which is collapse at its worst; below 1 the spectrum is flat, as noise's.

    Args:
        features: (N, D), N at least 4 and D at least 3.

    Returns:
        The exponent; infinity if fewer than three eigenvalues are above rounding errors.
    """
    x = _double(features, 4)
    if x is None:
        return math.nan
    with one_thread():
        centered = x - x.mean(dim=0)
        gram = centered.T @ centered if x.shape[0] > x.shape[1] else centered @ centered.T
        values = torch.linalg.eigvalsh(gram).flip(0)
    used = values[: max(3, min(len(x) - 1, x.shape[1]) // 2)]
    used = used[used > _NOISE * x.square().sum()]
    return math.inf if len(used) < 3 else power_law_exponent(used)


def power_law_exponent(values: Tensor) -> float:
    """Return alpha of the fit l_j = c j^-alpha to positive values l_1, l_2 ..., with the weights of `alpha_req`.

    Example:
        >>> round(power_law_exponent(torch.arange(1, 9, dtype=torch.float64) ** -1.5), 6)
        1.5
    """
    rank = torch.arange(1, len(values) + 1, dtype=torch.float64)
    weight = (1 / rank) / (1 / rank).sum()
    x, y = rank.log(), values.double().log()
    x = x - (weight * x).sum()
    return -float((weight * x * y).sum() / (weight * x * x).sum())


def lidar(views: Tensor) -> float:
    """Return LiDAR (Thilak et al., https://arxiv.org/abs/2312.04000, section 4), higher is better.

    The rank of linear discriminant analysis with each image as a class and its augmented views as samples:
    exp(-sum_k p_k log p_k) with p_k = l_k / sum_j l_j + 1e-7, for the eigenvalues l of S_w^-1/2 S_b S_w^-1/2. S_b is
    the covariance of the images' means over their views; S_w that of the views around the mean of their image, plus
    1e-4 on the diagonal. Directions that only tell augmentations apart do not count, unlike in RankMe.

    Args:
        views: (N, Q, D) features of Q views of N images, both at least 2. The rank is at most min(N - 1, D).
    """
    if views.dim() != 3 or views.shape[1] < 2:
        raise ConfigError(f"LiDAR needs (images, views, D) with 2 views or more, not {tuple(views.shape)}.")
    x = _double(views.flatten(1), 2)
    if x is None:
        return math.nan
    x = x.view(views.shape)
    with one_thread():
        means = x.mean(dim=1)
        around = (x - means[:, None]).flatten(0, 1)
        centered = means - means.mean(dim=0)
        within = around.T @ around / len(around) + _RIDGE * torch.eye(x.shape[2], dtype=torch.float64)
        # The eigenvalues of L^-1 S_b L^-T with S_w = L L^T are those of S_w^-1/2 S_b S_w^-1/2.
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(within), centered.T, upper=False)
        gram = white @ white.T if len(x) > x.shape[2] else white.T @ white
        values = torch.linalg.eigvalsh(gram) / len(x)
        floor = _NOISE * max(float(means.square().sum(dim=1).mean()) / _RIDGE, float(values.sum()))
    return _exp_entropy(torch.where(values > floor, values, 0.0))


def singular_values(features: Tensor) -> list[float]:
    """Return the singular values of centered features, over the square root of their number, largest first.

    Args:
        features: (N, D), N at least 2.

    Returns:
        The values that are above rounding errors; none if a feature is not finite.

    Example:
        >>> [round(v, 3) for v in singular_values(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))]
        [1.0]
    """
    x = _double(features, 2)
    if x is None:
        return []
    with one_thread():
        centered = x - x.mean(dim=0)
        gram = centered.T @ centered if len(x) > x.shape[1] else centered @ centered.T
        powers = torch.linalg.eigvalsh(gram).flip(0)
    return (powers[powers > _NOISE * x.square().sum()] / len(x)).sqrt().tolist()


def _double(features: Tensor, fewest: int) -> Tensor | None:
    """Return (N, D) features in float64 on the CPU; None if one is not finite."""
    if features.dim() != 2 or len(features) < fewest:
        raise ConfigError(f"Features have shape {tuple(features.shape)}: must be (N, D) with N >= {fewest}.")
    x = features.detach().to("cpu", torch.float64)
    return x if bool(torch.isfinite(x).all()) else None


def _exp_entropy(values: Tensor) -> float:
    """Return exp(entropy) of values >= 0; 1 if all are zero."""
    total = float(values.sum())
    if total == 0:
        return 1.0
    p = values / total + _EPSILON
    return float((-(p * p.log()).sum()).exp())
