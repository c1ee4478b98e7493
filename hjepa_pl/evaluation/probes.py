"""The verdict on one set of features: the same numbers during training and afterwards."""

import torch
from torch import Tensor

from hjepa_pl.evaluation.knn import knn_accuracy
from hjepa_pl.evaluation.linear import linear_probe, validation_fifth
from hjepa_pl.types import ConfigError

PROBES = {"knn": "k-NN", "linear": "linear"}
"""The probes and their titles. Each gives its accuracy on the test split, under its name, and `<name>_val`."""

VAL = "_val"
"""Ending of the metrics of the validation split, by which checkpoints and settings are chosen. Never by the others."""


def judge(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> dict[str, float]:
    """Judge features by weighted k-NN and by a converged linear classifier.

    What is reported is measured on the test bank, by the whole training bank. What choices are made by is measured on
    the validation split, every fifth training image of each class, by the other four fifths.

    Args:
        train_x: (N, D) features of the training bank.
        train_y: (N,) int64 labels.
        test_x: (M, D) features of the test bank, on the same device.
        test_y: (M,) int64 labels.
        num_classes: Number of classes.
        k: Neighbours of the k-NN.
        temperature: Temperature of the k-NN.

    Returns:
        In percent `knn` and `linear`, `linear_top5` where there are more than five classes, `knn_val` and `linear_val`
        unless no class of the training bank has five images; and `linear_l2`, the penalty that was chosen. All NaN when
        a feature is not finite, as after a divergence.
    """
    _refuse(train_y, test_y, num_classes)
    held = validation_fifth(train_y)
    validated = bool(held.any())
    if not (torch.isfinite(train_x).all() and torch.isfinite(test_x).all()):
        names = [*PROBES, "linear_l2", *(["linear_top5"] if num_classes > 5 else [])]
        return dict.fromkeys([*names, *(name + VAL for name in PROBES if validated)], float("nan"))
    linear = linear_probe(train_x, train_y, test_x, test_y, num_classes)
    found = {
        "knn": knn_accuracy(train_x, train_y, test_x, test_y, num_classes, k, temperature),
        "linear": linear.top1,
        "linear_l2": linear.l2,
    }
    if linear.top5 is not None:
        found["linear_top5"] = linear.top5
    if validated and linear.val is not None:
        rest, of_rest, val, of_val = train_x[~held], train_y[~held], train_x[held], train_y[held]
        found["knn_val"] = knn_accuracy(rest, of_rest, val, of_val, num_classes, k, temperature)
        found["linear_val"] = linear.val
    return found


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
