"""Splits that keep the proportions of the classes."""

import numpy as np
import torch
from torch import Tensor


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Choose `count` images at random so that every class keeps its proportion (to one image).

    Args:
        labels: (N,) int64; -1 counts as a class of its own.
        count: Number of images; all if there are fewer.
        seed: Of the choice.

    Returns:
        (min(N, count),) int64 indices, ascending.
    """
    total = len(labels)
    if count >= total:
        return torch.arange(total)
    generator = np.random.Generator(np.random.PCG64(seed))
    order = torch.from_numpy(generator.permutation(total))
    # The rank of each image within its class, over the class size, is spread evenly; the smallest are chosen.
    by_class = order[torch.argsort(labels[order], stable=True)]
    rank, size = rank_in_class(labels[by_class])
    chosen = by_class[torch.argsort((rank + 0.5) / size, stable=True)[:count]]
    return chosen.sort().values


def validation_split(labels: Tensor) -> Tensor:
    """Return every fifth image of each class, in their order, as a (N,) bool mask; none of classes of fewer than five.

    Args:
        labels: (N,) int64.
    """
    return rank_in_class(labels)[0] % 5 == 4


def rank_in_class(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's index among those of its class, and the size of its class: two (N,) int64 tensors."""
    group, sizes = torch.unique(labels, return_inverse=True, return_counts=True)[1:]
    order = torch.argsort(group, stable=True)
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(labels), device=labels.device) - (sizes.cumsum(0) - sizes)[group[order]]
    return rank, sizes[group]
