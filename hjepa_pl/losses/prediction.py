"""Distance between predicted and target tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.losses.config import PredictionKind
from hjepa_pl.utils.distributed import mean_over_ranks, world_size


def prediction_loss(prediction: Tensor, target: Tensor, kind: PredictionKind) -> Tensor:
    """Return the mean distance of predictions from targets, both (..., D), in float32.

    'smooth_l1' (beta 1) and 'mse' average over all entries; 'cosine' is 1 - cosine similarity, averaged over tokens.
    """
    prediction, target = prediction.float(), target.float()
    if kind == "smooth_l1":
        return F.smooth_l1_loss(prediction, target)
    if kind == "mse":
        return F.mse_loss(prediction, target)
    return 1.0 - F.cosine_similarity(prediction, target, dim=-1).mean()


def prediction_by_image(prediction: Tensor, target: Tensor, kind: PredictionKind) -> Tensor:
    """Return each image's share in `prediction_loss`, (B,) float32, which is their mean; inputs are (B, Q, D)."""
    prediction, target = prediction.float(), target.float()
    if kind == "cosine":
        return 1.0 - F.cosine_similarity(prediction, target, dim=-1).mean(dim=1)
    distance = F.smooth_l1_loss if kind == "smooth_l1" else F.mse_loss
    return distance(prediction, target, reduction="none").mean(dim=(1, 2))


_LEAST_BASELINE = 0.02
"""Least baseline, as a share of the loss of predicting zeros: targets that hardly differ between images have none."""


@torch.no_grad()
def position_baseline(target_map: Tensor, kind: PredictionKind) -> Tensor:
    """Return the loss of a predictor that knows the position only: of each position's mean over the other images.

    A level's loss over its baseline is 1 for such a predictor and 0 for a perfect one, whatever the level's depth and
    cell, so that levels are weighed alike. The mean is over the images of all ranks, without the image itself.

    Args:
        target_map: (B, cells, D), the target at every cell of the grid.
        kind: Distance.

    Returns:
        Scalar, float32, the same on every rank. With one image in all, which has no others, the loss of zeros.
    """
    target, images = target_map.float(), len(target_map) * world_size()
    zeros = mean_over_ranks(prediction_loss(torch.zeros_like(target), target, kind))
    if images == 1:
        return zeros
    # The mean of the others is further away than the mean of all, by B / (B - 1).
    others = target + (mean_over_ranks(target.mean(dim=0)) - target) * (images / (images - 1))
    return torch.maximum(mean_over_ranks(prediction_loss(others, target, kind)), _LEAST_BASELINE * zeros)
