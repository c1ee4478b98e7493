"""Figures that tell a living representation from a dead one.

A code that depends on position only, the same for every image, gives the predictor zero loss, and every statistic of
flattened tokens calls it healthy. So each figure here compares *images*: at one position, or after pooling.
"""

import torch
from torch import Tensor

from hjepa_pl.evaluation.threads import one_thread
from hjepa_pl.types import ConfigError, LevelState

_NOISE = 1e-5
"""Singular values (and deviations) below this share of the data's norm are float32 rounding, not information."""


def std_across_images(features: Tensor) -> Tensor:
    """Return the standard deviation over images at a fixed position, averaged over positions and dimensions.

    About 1 for layer-normed features that differ from image to image, 0 when all images have the same code.

    Args:
        features: (B, n, D), B at least 2.
    """
    _need_two(features)
    return features.float().std(dim=0).mean()


def position_share(features: Tensor) -> Tensor:
    """Return the share of the variance that the position alone explains: 0 none, 1 all (position-only collapse).

    The variance between the per-position means of the batch over the total variance. What B images put into those
    means by chance (variance within a position / B) is taken off, so that pure noise reads 0 and not 1 / B. A constant
    code, which has no variance, reads 1.

    Args:
        features: (B, n, D), B at least 2.
    """
    _need_two(features)
    features = features.float()
    within = features.var(dim=0).mean()
    between = features.mean(dim=0).var(dim=0, correction=0).mean() - within / len(features)
    between = between.clamp_min(0)
    total = between + within
    dead = total <= (_NOISE * features.square().mean().sqrt()).square()
    return torch.where(dead, torch.ones_like(total), between / total.clamp_min(torch.finfo(torch.float32).tiny))


def image_share(features: Tensor) -> Tensor:
    """Return the share of what tells images apart that is the same at every position of an image: 0 none, 1 all.

    At 1 all tokens of an image are one vector but for what their positions add: nothing local is left. With the model
    token = constant + position + image + rest (the two-way layout of the analysis of variance), it is the variance of
    the image's term over that of image and rest. Both are estimated without bias, so pure noise reads 0 whatever B and
    n. A code that does not tell images apart reads 0: that is for `std_across_images` and `position_share` to see.

    Args:
        features: (B, n, D), B and n at least 2.
    """
    _need_two(features)
    if features.shape[1] < 2:
        raise ConfigError(f"The grid holds {features.shape[1]} cell: what is local needs 2 or more.")
    features = features.float()
    images, positions = features.shape[:2]
    total = features.var(dim=0).mean()
    centred = features - features.mean(dim=0)
    rest = (centred - centred.mean(dim=1, keepdim=True)).square().sum(dim=(0, 1)).mean()
    rest = rest / ((images - 1) * (positions - 1))
    dead = total <= (_NOISE * features.square().mean().sqrt()).square()
    share = (1 - rest / total.clamp_min(torch.finfo(torch.float32).tiny)).clamp_min(0)
    return torch.where(dead, torch.zeros_like(share), share)


def effective_rank(embeddings: Tensor) -> float:
    """Return exp(entropy) of the normalised singular values of the centred embeddings: 1 to min(N - 1, D).

    Roy & Vetterli, "The effective rank" (EUSIPCO 2007). RankMe (arXiv:2210.02885) is the same on the matrix as it is;
    centring keeps a large common mean from hiding, or passing for, what tells images apart. Values that are rounding
    noise against the uncentred matrix count as zero, and with none left the rank is 1: one code for all images.
    Computed in float64 on the CPU from the smaller Gram matrix.

    Args:
        embeddings: (N, D), N at least 2.
    """
    _need_two(embeddings)
    x = embeddings.detach().to("cpu", torch.float64)
    if not torch.isfinite(x).all():
        return float("nan")
    with one_thread():
        centred = x - x.mean(dim=0)
        gram = centred.T @ centred if x.shape[0] > x.shape[1] else centred @ centred.T
        values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    values = values[values > _NOISE * x.norm()]
    if len(values) == 0:
        return 1.0
    share = values / values.sum()
    return float((-(share * share.log()).sum()).exp())


def prediction_gain(state: LevelState) -> Tensor:
    """Return how much better the predictor is than the per-position mean of the targets: 1 perfect, 0 no better.

    1 - mse(prediction, target) / mse(mean target of that cell over the batch, target). The mean of B images fits those
    B images too well: its error is (B - 1) / B of that of the true mean, so it is multiplied by B / (B - 1). Low for a
    predictor that knows positions only, which no rank and no variance of the targets shows. 0 when the targets differ
    between images by less than a thousandth of their size: there is nothing to gain.

    Args:
        state: What a level predicted for a batch of 2 images or more.
    """
    _need_two(state.target_map)
    prediction, target, places = state.prediction.float(), state.target.float(), state.target_map.float()
    baseline = places.mean(dim=0)[state.cells]
    batch = len(places)
    floor = (target - baseline).square().mean() * (batch / (batch - 1))
    dead = floor <= (1e-3 * target.square().mean().sqrt()).square()
    gain = 1 - (prediction - target).square().mean() / floor.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(dead, torch.zeros_like(gain), gain)


def _need_two(x: Tensor) -> None:
    if len(x) < 2:
        raise ConfigError(f"The batch holds {len(x)} image: collapse is measured between images, so give 2 or more.")
