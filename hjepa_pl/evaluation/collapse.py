"""Metrics that detect representation collapse.

Features that depend on position only, the same for every image, give the predictor zero loss, and pass every statistic
of flattened tokens. So each metric here compares *images*: at one position, or after pooling.
"""

import torch
from torch import Tensor

from hjepa_pl.evaluation.threads import one_thread
from hjepa_pl.types import ConfigError, LevelState

_NOISE = 1e-5
"""Singular values (and deviations) below this fraction of the data's norm are float32 rounding errors."""


def std_across_images(features: Tensor) -> Tensor:
    """Return the standard deviation over images at a fixed position, averaged over positions and dimensions.

    About 1 for layer-normed features that differ between images, 0 if all images have the same features.

    Args:
        features: (B, n, D), B at least 2.

    Example:
        >>> float(std_across_images(torch.ones(8, 16, 4)))  # eight images, all the same
        0.0
    """
    _check_images(features)
    return features.float().std(dim=0).mean()


def spread(embeddings: Tensor) -> Tensor:
    """Return how much pooled embeddings differ between images: rms distance to their mean over their rms size.

    0 if all images have the same embedding, 1 if their mean is zero. It sees embeddings that shrink towards their mean,
    which no rank sees (a rank does not depend on scale) and no loss behind a batch norm (which divides by the scale).

    Args:
        embeddings: (B, D), B at least 2.

    Example:
        >>> float(spread(torch.tensor([[1.0, 2.0], [1.0, 2.0]])))
        0.0
    """
    _check_images(embeddings)
    embeddings = embeddings.float()
    power = embeddings.square().mean()
    return (embeddings.var(dim=0).mean() / power.clamp_min(torch.finfo(torch.float32).tiny)).sqrt()


def position_share(features: Tensor) -> Tensor:
    """Return the fraction of the variance that the position alone explains: 1 is position-only collapse.

    The variance between the per-position means of the batch over the total variance. The expected contribution of noise
    to those means (variance within a position / B) is subtracted, so that pure noise gives 0 and not 1 / B. Constant
    features, which have no variance, give 1.

    Args:
        features: (B, n, D), B at least 2.
    """
    _check_images(features)
    features = features.float()
    within = features.var(dim=0).mean()
    between = features.mean(dim=0).var(dim=0, correction=0).mean() - within / len(features)
    between = between.clamp_min(0)
    total = between + within
    dead = total <= (_NOISE * features.square().mean().sqrt()).square()
    return torch.where(dead, torch.ones_like(total), between / total.clamp_min(torch.finfo(torch.float32).tiny))


def image_share(features: Tensor) -> Tensor:
    """Return the fraction of the variance between images that is common to all positions of an image.

    At 1 the tokens of an image are one vector plus a function of position: nothing local is left. With the model
    token = constant + position + image + rest (two-way analysis of variance), it is the variance of the image term over
    that of image and rest. Both are estimated without bias: pure noise gives 0 for any B and n. Features that do not
    differ between images give 0: `std_across_images` and `position_share` detect those.

    Args:
        features: (B, n, D), B and n at least 2.
    """
    _check_images(features)
    if features.shape[1] < 2:
        raise ConfigError(f"The grid holds {features.shape[1]} cell: local structure needs 2 or more.")
    features = features.float()
    images, positions = features.shape[:2]
    total = features.var(dim=0).mean()
    centered = features - features.mean(dim=0)
    rest = (centered - centered.mean(dim=1, keepdim=True)).square().sum(dim=(0, 1)).mean()
    rest = rest / ((images - 1) * (positions - 1))
    dead = total <= (_NOISE * features.square().mean().sqrt()).square()
    fraction = (1 - rest / total.clamp_min(torch.finfo(torch.float32).tiny)).clamp_min(0)
    return torch.where(dead, torch.zeros_like(fraction), fraction)


def power_shares(features: Tensor) -> dict[str, Tensor]:
    """Return the fraction of the mean square that each part of token = constant + position + image + local has.

    'constant' is the mean of all tokens, 'position' what the tokens at one position have in common beyond it, 'image'
    what those of one image have, 'local' the rest: the parts are orthogonal, and the fractions sum to 1. Unlike those
    of `image_share` and `position_share`, they are of this batch, not estimates for all images: of pure noise, 1 / B is
    'position' and 1 / n 'image'.

    Args:
        features: (B, n, D), B at least 2.

    Example:
        >>> shares = power_shares(torch.tensor([3.0, -3.0])[:, None, None] * torch.ones(2, 5, 4))
        >>> {name: float(share) for name, share in shares.items()}  # one vector an image
        {'constant': 0.0, 'position': 0.0, 'image': 1.0, 'local': 0.0}
    """
    _check_images(features)
    features = features.float()
    constant = features.mean(dim=(0, 1))
    total = features.square().mean()
    parts = {
        "constant": constant.square().mean(),
        "position": (features.mean(dim=0) - constant).square().mean(),
        "image": (features.mean(dim=1) - constant).square().mean(),
    }
    parts["local"] = (total - sum(parts.values())).clamp_min(0)
    return {name: part / total.clamp_min(torch.finfo(torch.float32).tiny) for name, part in parts.items()}


def effective_rank(embeddings: Tensor) -> float:
    """Return exp(entropy) of the normalized singular values of the centered embeddings: 1 to min(N - 1, D).

    Roy & Vetterli, "The effective rank" (EUSIPCO 2007). RankMe (https://arxiv.org/abs/2210.02885) is the same without
    centering, which keeps a large common mean from hiding the differences between images. Values that are rounding
    errors relative to the uncentered matrix count as zero, and with none left the rank is 1. Computed in float64 on the
    CPU from the smaller Gram matrix.

    Args:
        embeddings: (N, D), N at least 2.

    Returns:
        The rank; NaN if an embedding is not finite.

    Example:
        >>> round(effective_rank(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 3)
        2.0
    """
    _check_images(embeddings)
    x = embeddings.detach().to("cpu", torch.float64)
    if not torch.isfinite(x).all():
        return float("nan")
    with one_thread():
        centered = x - x.mean(dim=0)
        gram = centered.T @ centered if x.shape[0] > x.shape[1] else centered @ centered.T
        values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    values = values[values > _NOISE * x.norm()]
    if len(values) == 0:
        return 1.0
    p = values / values.sum()
    return float((-(p * p.log()).sum()).exp())


def prediction_gain(state: LevelState) -> Tensor:
    """Return the predictor's explained variance relative to the per-position mean of the targets: 1 is perfect.

    1 - mse(prediction, target) / mse(mean target of that cell over the batch, target). The mean of B images overfits
    those images: its error is (B - 1) / B of that of the true mean, so it is multiplied by B / (B - 1). Low for a
    predictor that knows positions only, which neither rank nor variance of the targets shows. 0 if the targets differ
    between images by less than a thousandth of their size.

    Args:
        state: Predictions of a level for a batch of 2 images or more.
    """
    _check_images(state.target_map)
    prediction, target, target_map = state.prediction.float(), state.target.float(), state.target_map.float()
    baseline = target_map.mean(dim=0)[state.cells]
    batch = len(target_map)
    floor = (target - baseline).square().mean() * (batch / (batch - 1))
    dead = floor <= (1e-3 * target.square().mean().sqrt()).square()
    gain = 1 - (prediction - target).square().mean() / floor.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(dead, torch.zeros_like(gain), gain)


def _check_images(x: Tensor) -> None:
    if len(x) < 2:
        raise ConfigError(f"The batch holds {len(x)} image: collapse is measured between 2 images or more.")
