"""Weighted k-nearest-neighbor classification on frozen features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.evaluation.base import VAL, Features, Probe
from hjepa_pl.functional.stratify import validation_split
from hjepa_pl.types import ConfigError


class KNNProbe(Probe):
    """Accuracy of `knn_predict`.

    Args:
        k: Neighbors that vote.
        temperature: Temperature of the votes.
    """

    title = "k-NN"

    def __init__(self, k: int = 20, temperature: float = 0.07) -> None:
        self.k, self.temperature = k, temperature

    def __call__(self, features: Features) -> dict[str, float]:
        """Return the accuracy on the test split and, where there is one, on the validation split."""
        x, y, test_x, test_y, num_classes = features
        metrics = {"": knn_accuracy(x, y, test_x, test_y, num_classes, self.k, self.temperature)}
        held = validation_split(y)
        if held.any():
            metrics[VAL] = knn_accuracy(x[~held], y[~held], x[held], y[held], num_classes, self.k, self.temperature)
        return metrics


def knn_predict(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Tensor:
    """Classify by a vote of the k most similar training images.

    Similarity is the cosine, a vote weighs exp(similarity / temperature), the class with the largest sum wins, and the
    lower class index wins a tie (DINO, https://arxiv.org/abs/2104.14294, section 4.1 and its `eval_knn.py`). Of fewer
    than k training images all vote.

    Args:
        train_x: (N, D) features of the training split.
        train_y: (N,) int64 labels, 0 to num_classes - 1.
        test_x: (M, D) features to classify, on the same device.
        num_classes: Number of classes.
        k: Neighbors that vote.
        temperature: Temperature of the votes.
        chunk: Test images per matrix product: bounds the memory at chunk x N similarities.

    Returns:
        (M,) int64 predicted classes.

    Raises:
        ConfigError: If k is below 1 or the temperature is not positive.

    Example:
        >>> bank, labels = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> knn_predict(bank, labels, torch.tensor([[2.0, 0.1], [0.1, 3.0]]), num_classes=2, k=1)
        tensor([0, 1])
    """
    return knn_votes(train_x, train_y, test_x, num_classes, (k,), temperature, chunk)[k].argmax(dim=1)


def knn_votes(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    num_classes: int,
    ks: Sequence[int],
    temperature: float = 0.07,
    chunk: int = 1024,
) -> dict[int, Tensor]:
    """Return the votes of `knn_predict` for several numbers of neighbors, found in one pass.

    Args:
        train_x: (N, D) features of the training split.
        train_y: (N,) int64 labels, 0 to num_classes - 1.
        test_x: (M, D) features to classify, on the same device.
        num_classes: Number of classes.
        ks: Numbers of neighbors that vote.
        temperature: Temperature of the votes.
        chunk: Test images per matrix product.

    Returns:
        For each k (M, num_classes): the share of each class in the weights, which sum to 1.

    Raises:
        ConfigError: If a k is below 1 or the temperature is not positive.
    """
    if min(ks) < 1:
        raise ConfigError(f"invalid `k={min(ks)}`: must be a whole number >= 1.")
    if temperature <= 0:
        raise ConfigError(f"invalid `temperature={temperature}`: must be a number > 0, such as 0.07.")
    bank = F.normalize(train_x, dim=1).T.contiguous()
    parts: dict[int, list[Tensor]] = {k: [] for k in ks}
    for queries in F.normalize(test_x, dim=1).split(chunk):
        similarity, nearest = (queries @ bank).topk(min(max(ks), len(train_x)), dim=1)
        # The largest weight cancels in the argmax; without it no temperature overflows.
        weights, label = ((similarity - similarity[:, :1]) / temperature).exp(), train_y[nearest]
        for k in ks:
            votes = weights.new_zeros(len(queries), num_classes).scatter_add_(1, label[:, :k], weights[:, :k])
            parts[k].append(votes)
    return {k: F.normalize(torch.cat(votes), p=1, dim=1) for k, votes in parts.items()}


def knn_accuracy(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Return the accuracy of `knn_predict` on the test images, in percent."""
    predicted = knn_predict(train_x, train_y, test_x, num_classes, k, temperature)
    return 100.0 * (predicted == test_y).sum().item() / len(test_y)
