"""Prediction losses: distances between predicted and target tokens."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.losses.config import PredictionKind
from hjepa_pl.utils.distributed import mean_over_ranks, world_size
from hjepa_pl.utils.registry import Registry

PredictionLoss = Callable[[Tensor, Tensor], Tensor]
"""Takes predictions and targets, (..., D) float32; returns their mean distance, a scalar. In plain tensor operations,
without a Python branch on values: `torch.vmap` makes each image's loss of it."""


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Return 1 - cosine similarity, averaged over tokens."""
    return 1.0 - F.cosine_similarity(prediction, target, dim=-1).mean()


PREDICTION_LOSSES: Registry[PredictionLoss] = Registry(
    "prediction",
    {"smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss, "cosine": cosine},  # smooth_l1 with beta 1
)


def prediction_loss(prediction: Tensor, target: Tensor, kind: PredictionKind) -> Tensor:
    """Return the mean distance of predictions from targets, both (..., D), in float32.

    Args:
        prediction: Predicted tokens.
        target: Target tokens.
        kind: Key of `PREDICTION_LOSSES`, or import path of a function like them.

    Example:
        >>> z = torch.tensor([[3.0, 4.0]])
        >>> [round(float(prediction_loss(z, torch.zeros(1, 2), kind)), 2) for kind in ("smooth_l1", "mse")]
        [3.0, 12.5]
    """
    return PREDICTION_LOSSES.find(kind)(prediction.float(), target.float())


def prediction_by_image(prediction: Tensor, target: Tensor, kind: PredictionKind, images: int | None = None) -> Tensor:
    """Return each image's term of `prediction_loss`, which is their mean.

    Args:
        prediction: (M * B, Q, D): of M masks of B images, one mask of all images after the other.
        target: The same.
        kind: As in `prediction_loss`.
        images: B; None for one mask.

    Returns:
        (B,) float32.
    """
    values = torch.vmap(PREDICTION_LOSSES.find(kind))(prediction.float(), target.float())
    return values if images is None else values.unflatten(0, (-1, images)).mean(dim=0)


_MIN_BASELINE = 0.02
"""Lower bound of the baseline, relative to the loss of predicting zeros: targets that hardly differ between images have
almost none."""


@torch.no_grad()
def position_baseline(target_map: Tensor, kind: PredictionKind) -> Tensor:
    """Return the loss of predicting, at each position, the mean of the other images' targets.

    A level's loss over its baseline is 1 for a predictor that knows the position only and 0 for a perfect one, whatever
    the level's depth and cell, so that levels have comparable weight. The mean is over the images of all ranks, without
    the image itself.

    Args:
        target_map: (B, cells, D), the target at every cell of the grid.
        kind: Prediction loss.

    Returns:
        Scalar, float32, the same on every rank. With a single image over all ranks, the loss of predicting zeros.
    """
    target, images = target_map.float(), len(target_map) * world_size()
    zeros = mean_over_ranks(prediction_loss(torch.zeros_like(target), target, kind))
    if images == 1:
        return zeros
    # The mean of the others is further away than the mean of all, by B / (B - 1).
    others = target + (mean_over_ranks(target.mean(dim=0)) - target) * (images / (images - 1))
    return torch.maximum(mean_over_ranks(prediction_loss(others, target, kind)), _MIN_BASELINE * zeros)
