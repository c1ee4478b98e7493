"""Distance between predicted and target tokens."""

import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.losses.settings import PredictionKind


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


def view_loss(projection: Tensor) -> Tensor:
    """Return the mean squared distance of every view's projection from the mean of the views (LeJEPA, section 4).

    Args:
        projection: (V, B, P); the gradient reaches both sides.
    """
    projection = projection.float()
    return (projection - projection.mean(dim=0)).square().mean()
