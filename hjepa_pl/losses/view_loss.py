"""Distance between the projections of the views of one image."""

import torch
from torch import Tensor

from hjepa_pl.losses.config import Compare


def paired_views(views: Tensor, partial: int = 0) -> tuple[Tensor, Tensor]:
    """Return all pairs of two views of which at least one is full, as two tensors (pairs, B, P).

    Partial views (the first `partial`) are never paired with each other: they may show disjoint parts.

    Args:
        views: (V, B, P), V at least 2.
        partial: Number of leading views that show a part of the image only, at most V - 1.
    """
    pairs = [(i, j) for j in range(partial, len(views)) for i in range(j)]
    # Stacked, not indexed: a list of indices would be copied to the device synchronously.
    return torch.stack([views[i] for i, _ in pairs]), torch.stack([views[j] for _, j in pairs])


def view_loss(projection: Tensor, partial: int = 0, compare: Compare = "mean") -> Tensor:
    """Return the mean squared distance between the views' projections, in float32.

    'mean' is the distance of every view from the mean of the full views (LeJEPA, arXiv:2511.08544, section 4),
    'pairwise' that of all pairs of two views of which at least one is full (as VICReg's invariance). If all V views
    are full, the second is 2V / (V - 1) times the first: 4 times with two views.

    Args:
        projection: (V, B, P); the gradient reaches both views of a pair.
        partial: Number of leading views that show a part of the image only (the masked view, local crops): they are not
            in the mean, and not compared with each other.
        compare: 'mean' or 'pairwise'.
    """
    return _squares(projection, partial, compare).mean()


def view_loss_by_image(projection: Tensor, partial: int, compare: Compare) -> Tensor:
    """Return each image's term of `view_loss`, (B,) float32, which is their mean; arguments as in `view_loss`."""
    return _squares(projection, partial, compare).mean(dim=(0, 2))


def _squares(projection: Tensor, partial: int, compare: Compare) -> Tensor:
    """Return the squared distances, (views or pairs, B, P)."""
    projection = projection.float()
    if compare == "mean":
        return (projection - projection[partial:].mean(dim=0)).square()
    if compare == "pairwise":
        left, right = paired_views(projection, partial)
        return (left - right).square()
    raise ValueError(f"compare must be 'mean' or 'pairwise', got {compare!r}.")
