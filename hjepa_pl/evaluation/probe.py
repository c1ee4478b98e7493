"""The verdict on one set of features: the same numbers during training and afterwards."""

from typing import TypedDict

import torch
from torch import Tensor

from hjepa_pl.evaluation.knn import knn_accuracy
from hjepa_pl.evaluation.linear import linear_probe
from hjepa_pl.types import ConfigError


class Verdict(TypedDict):
    """Test accuracies in percent."""

    knn: float
    linear: float


def judge(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Verdict:
    """Judge features by weighted k-NN and by a converged linear classifier.

    Args:
        train_x: (N, D) features of the training bank.
        train_y: (N,) int64 labels.
        test_x: (M, D) features of the test bank, on the same device.
        test_y: (M,) int64 labels.
        num_classes: Number of classes.
        k: Neighbours of the k-NN.
        temperature: Temperature of the k-NN.

    Returns:
        `{"knn": percent, "linear": percent}`; both NaN when a feature is not finite, as after a divergence.
    """
    _refuse(train_y, test_y, num_classes)
    if not (torch.isfinite(train_x).all() and torch.isfinite(test_x).all()):
        return {"knn": float("nan"), "linear": float("nan")}
    return {
        "knn": knn_accuracy(train_x, train_y, test_x, test_y, num_classes, k, temperature),
        "linear": linear_probe(train_x, train_y, test_x, test_y, num_classes).top1,
    }


def _refuse(train_y: Tensor, test_y: Tensor, num_classes: int) -> None:
    for name, y in (("train", train_y), ("test", test_y)):
        if len(y) == 0:
            raise ConfigError(f"The {name} split of the probe set is empty: give it labelled images.")
        if y.min() < 0 or y.max() >= num_classes:
            raise ConfigError(
                f"Labels {int(y.min())}..{int(y.max())} in the {name} split of the probe set do not fit num_classes "
                f"{num_classes}: use a labelled set whose classes are 0..{num_classes - 1}."
            )
    if len(train_y.unique()) < 2:
        raise ConfigError(
            f"All {len(train_y)} training images of the probe set are of class {int(train_y[0])}: "
            "a probe needs two classes or more."
        )
