"""Weighted k-nearest-neighbour classification on frozen features."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.types import ConfigError


def knn_predict(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """Classify by the vote of the k most similar training images.

    Similarity is the cosine, a neighbour's vote weighs exp(similarity / temperature), the class with the largest sum
    wins, and the lower class number wins a tie (DINO, arXiv:2104.14294, section 4.1 and its `eval_knn.py`). A bank of
    fewer than k images votes as a whole.

    Args:
        train_x: (N, D) features of the bank.
        train_y: (N,) int64 labels, 0..num_classes-1.
        test_x: (M, D) features to be classified, on the bank's device.
        num_classes: Number of classes.
        k: Neighbours that vote.
        temperature: Softness of the votes.
        chunk: Test images compared at a time: bounds the memory at chunk x N similarities.

    Returns:
        (M,) int64 predicted classes.
    """
    if k < 1:
        raise ConfigError(f"k is {k}: the k-NN probe needs at least 1 neighbour.")
    if temperature <= 0:
        raise ConfigError(f"temperature is {temperature}: the k-NN probe needs a value above 0, such as 0.07.")
    bank = F.normalize(train_x, dim=1).T.contiguous()
    neighbours = min(k, len(train_x))
    predictions = []
    for queries in F.normalize(test_x, dim=1).split(chunk):
        similarity, places = (queries @ bank).topk(neighbours, dim=1)
        # The largest weight is taken out (it cancels in the argmax), so that no temperature overflows.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(queries), num_classes).scatter_add_(1, train_y[places], weights)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def knn_accuracy(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Return the share of test images that `knn_predict` classifies rightly, in percent."""
    predicted = knn_predict(train_x, train_y, test_x, num_classes, k, temperature)
    return 100.0 * (predicted == test_y).sum().item() / len(test_y)
