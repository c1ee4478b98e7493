"""Probe sets: labelled images in their clean form, a bank to learn from and a test split to be judged on."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hjepa_pl.data.config import ProbeConfig
from hjepa_pl.data.sources.images import IndexedImages
from hjepa_pl.data.sources.registry import num_classes
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.stratify import stratified
from hjepa_pl.types import ConfigError


class ProbeSplit(NamedTuple):
    """One of the loaders of `val_dataloader`."""

    name: str
    """The probe's title."""
    split: Literal["train", "test"]
    num_classes: int
    size: int
    """Images over all ranks."""


def held_out(images: IndexedImages, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split a set for a probe, the same share of every class.

    Returns:
        Places of what may be learned from, and of what is held out; both int64, ascending.
    """
    out = torch.zeros(len(images), dtype=torch.bool)
    out[stratified(images.labels, round(share * len(images)), hash_int(seed, Stream.ORDER, 2))] = True
    return torch.nonzero(~out)[:, 0], torch.nonzero(out)[:, 0]


def load_probe(
    config: ProbeConfig, seed: int, load: Callable[[str, str | None, str, str | None], IndexedImages]
) -> list[tuple[ProbeSplit, IndexedImages, Tensor]]:
    """Load the bank and the test split of a probe, and choose their images.

    Returns:
        For `train`, then `test`: what it is, the images, and (N,) int64 which of them are used.
    """
    title = config.title or config.name
    if config.holdout is None:
        train, test = (load(config.name, config.root, split, config.classes) for split in ("train", "test"))
        parts = (torch.arange(len(train)), torch.arange(len(test)))
    else:
        train = test = load(config.name, config.root, "train", config.classes)
        parts = held_out(train, config.holdout, seed)
    for images, part in zip((train, test), parts, strict=True):
        _check_labels(title, images.labels[part])
    if train.classes != test.classes:
        raise ConfigError(f"`probe` {title} has other classes in train than in test: give both the same folders.")
    bank = parts[0][stratified(train.labels[parts[0]], config.max_train, hash_int(seed, Stream.ORDER, 0))]
    judged = parts[1][stratified(test.labels[parts[1]], config.max_test, hash_int(seed, Stream.ORDER, 1))]
    classes = max(len(train.classes), num_classes(train.labels))
    return [
        (ProbeSplit(title, "train", classes, len(bank)), train, bank),
        (ProbeSplit(title, "test", classes, len(judged)), test, judged),
    ]


def _check_labels(title: str, labels: Tensor) -> None:
    """Refuse what cannot be told apart."""
    if not len(labels):
        raise ConfigError(f"`probe` {title} holds out none or all of its few images: change its holdout.")
    if int(labels.min()) < 0:
        raise ConfigError(f"`probe` {title} has images without a label: give a set with one folder a class.")
    if int(labels.min()) == int(labels.max()):
        raise ConfigError(f"`probe` {title} has images of one class only: give a set with two or more.")
