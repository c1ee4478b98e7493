"""Train and test split of a probe."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hjepa_pl.data.config import ProbeConfig
from hjepa_pl.data.holdout import split_held_out
from hjepa_pl.data.sources.images import IndexedImages
from hjepa_pl.data.sources.registry import num_classes
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.stratify import stratified
from hjepa_pl.types import ConfigError


class ProbeSplit(NamedTuple):
    """Describes a loader of `val_dataloader`."""

    name: str
    """The probe's title."""
    split: Literal["train", "test"]
    num_classes: int
    size: int
    """Number of images over all ranks."""


def load_probe(
    config: ProbeConfig, seed: int, load: Callable[[str, str | None, str, str | None], IndexedImages]
) -> list[tuple[ProbeSplit, IndexedImages, Tensor]]:
    """Load the train and test split of a probe, and select their images.

    Args:
        config: The probe.
        seed: Seed of the selection.
        load: Returns a dataset by name, root, split and class list.

    Returns:
        For `train`, then `test`: description, dataset, and (N,) int64 indices of its selected images.

    Raises:
        ConfigError: If labels are missing, of a single class, or of other classes in the two splits.
    """
    title = config.title or config.name
    if config.holdout is None:
        train, test = (load(config.name, config.root, split, config.classes) for split in ("train", "test"))
        indices = (torch.arange(len(train)), torch.arange(len(test)))
    else:
        train = test = load(config.name, config.root, "train", config.classes)
        indices = split_held_out(train, config.holdout, seed)
    for images, index in zip((train, test), indices, strict=True):
        _check_labels(title, images.labels[index])
    if train.classes != test.classes:
        raise ConfigError(f"The probe {title} has different classes in train and test; use the same folders for both.")
    selected = [
        index[stratified(images.labels[index], count, hash_int(seed, Stream.ORDER, i))]
        for i, (images, index, count) in enumerate(
            zip((train, test), indices, (config.max_train, config.max_test), strict=True)
        )
    ]
    classes = max(len(train.classes), num_classes(train.labels))
    return [
        (ProbeSplit(title, "train", classes, len(selected[0])), train, selected[0]),
        (ProbeSplit(title, "test", classes, len(selected[1])), test, selected[1]),
    ]


def _check_labels(title: str, labels: Tensor) -> None:
    """Reject a split without labels of at least two classes."""
    if not len(labels):
        raise ConfigError(f"The probe {title} holds out none or all of its images; change probe.holdout.")
    if int(labels.min()) < 0:
        raise ConfigError(f"The probe {title} has images without a label; use a dataset with one folder per class.")
    if int(labels.min()) == int(labels.max()):
        raise ConfigError(f"The probe {title} has images of a single class; use a dataset with at least two.")
