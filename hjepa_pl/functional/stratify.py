"""A choice that keeps the proportions of classes."""

import numpy as np
import torch
from torch import Tensor


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Choose `count` places so that every class keeps its share (to one image), by the seed.

    Args:
        labels: (N,) int64; -1 counts as a class of its own.
        count: How many to choose; all if there are fewer.
        seed: Which ones.

    Returns:
        (min(N, count),) int64, ascending.
    """
    total = len(labels)
    if count >= total:
        return torch.arange(total)
    generator = np.random.Generator(np.random.PCG64(seed))
    order = torch.from_numpy(generator.permutation(total))
    # The rank of each image within its class, over the class size, is spread evenly; the smallest are chosen.
    by_class = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.unique_consecutive(labels[by_class], return_counts=True)[1]
    rank = torch.cat([(torch.arange(int(s)) + 0.5) / int(s) for s in sizes])
    chosen = by_class[torch.argsort(rank, stable=True)[:count]]
    return chosen.sort().values
