"""Registry of the probes, and the metrics of all of them on one labeled dataset."""

import torch
from torch import Tensor

from hjepa_pl.evaluation.base import VAL, Features, Probe
from hjepa_pl.evaluation.knn import KNNProbe
from hjepa_pl.evaluation.linear import LinearProbe
from hjepa_pl.functional.stratify import validation_split
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.registry import Registry

PROBES: Registry[type[Probe]] = Registry("probe", {"knn": KNNProbe, "linear": LinearProbe})


def evaluate_probes(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> dict[str, float]:
    """Evaluate features by every probe.

    Test metrics are measured on the test split, with the whole training split. Validation metrics, by which choices are
    made, are measured on every fifth training image of each class, with the other four fifths.

    Args:
        train_x: (N, D) features of the training split.
        train_y: (N,) int64 labels.
        test_x: (M, D) features of the test split, on the same device.
        test_y: (M,) int64 labels.
        num_classes: Number of classes.
        k: Neighbors of the k-NN.
        temperature: Temperature of the k-NN.

    Returns:
        By default, in percent: `knn` and `linear`; `linear_top5` with more than five classes; `knn_val` and
        `linear_val` unless no class of the training split has five images. And `linear_l2`, the penalty. All are NaN
        when a feature is not finite, as after a divergence.

    Raises:
        ConfigError: If a split is empty, a label is out of range, or all training images are of one class.
    """
    _check_labels(train_y, test_y, num_classes)
    features = Features(train_x, train_y, test_x, test_y, num_classes)
    finite = bool(torch.isfinite(train_x).all() and torch.isfinite(test_x).all())
    metrics: dict[str, float] = {}
    for name, make in PROBES.items():
        probe = KNNProbe(k, temperature) if make is KNNProbe else make()
        found = probe(features) if finite else _not_a_number(probe, features)
        metrics |= {metric_name(name, metric): value for metric, value in found.items()}
    return metrics


def metric_name(probe: str, metric: str) -> str:
    """Return the name in logs: 'knn' of '', 'knn_val' of 'val'."""
    return f"{probe}_{metric}" if metric else probe


def _not_a_number(probe: Probe, features: Features) -> dict[str, float]:
    """Return NaN for every metric of a probe."""
    names = ["", *probe.extra_metrics(features.num_classes)]
    if validation_split(features.train_y).any():
        names.append(VAL)
    return dict.fromkeys(names, float("nan"))


def _check_labels(train_y: Tensor, test_y: Tensor, num_classes: int) -> None:
    for name, y in (("train", train_y), ("test", test_y)):
        if len(y) == 0:
            raise ConfigError(f"The {name} split of the probe dataset is empty; add labeled images.")
        if y.min() < 0 or y.max() >= num_classes:
            raise ConfigError(
                f"Labels {int(y.min())} to {int(y.max())} in the {name} split of the probe dataset do not fit "
                f"num_classes {num_classes}: they must be 0 to {num_classes - 1}."
            )
    if len(train_y.unique()) < 2:
        raise ConfigError(
            f"All {len(train_y)} training images of the probe dataset are of class {int(train_y[0])}: "
            "a probe needs two classes or more."
        )
