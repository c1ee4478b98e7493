"""Probe sets: labelled images in their clean form, a bank to learn from and a test split to be judged on."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader

from hjepa_pl.data.batches import CleanRows, RawClean
from hjepa_pl.data.datasets import num_classes
from hjepa_pl.data.settings import ProbeConfig
from hjepa_pl.data.storage import Images, stratified
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.types import ConfigError


class ProbeSplit(NamedTuple):
    """One of the loaders of `val_dataloader`."""

    name: str
    """The probe's title."""
    split: Literal["train", "test"]
    num_classes: int
    size: int
    """Images over all ranks."""


def load_probe(
    config: ProbeConfig, seed: int, load: Callable[[str, str | None, str], Images]
) -> list[tuple[ProbeSplit, Images, Tensor]]:
    """Load the bank and the test split of a probe, and choose their images.

    Returns:
        For `train`, then `test`: what it is, the images, and (N,) int64 which of them are used.
    """
    train, test = (load(config.name, config.root, split) for split in ("train", "test"))
    title = config.title or config.name
    for images in (train, test):
        if int(images.labels.min()) < 0:
            raise ConfigError(f"`probe` {title} has images without a label: give a set with one folder a class.")
    if train.classes != test.classes:
        raise ConfigError(f"`probe` {title} has other classes in train than in test: give both the same folders.")
    bank = stratified(train.labels, config.max_train, hash_int(seed, Stream.ORDER, 0))
    judged = stratified(test.labels, config.max_test, hash_int(seed, Stream.ORDER, 1))
    classes = max(len(train.classes), num_classes(train.labels))
    return [
        (ProbeSplit(title, "train", classes, len(bank)), train, bank),
        (ProbeSplit(title, "test", classes, len(judged)), test, judged),
    ]


def clean_loader(
    rows: CleanRows, places: range, *, batch_size: int, num_workers: int, pin_memory: bool
) -> DataLoader[RawClean]:
    """Make a plain loader of clean batches in the order of `places`."""
    batches: Any = [list(places[i : i + batch_size]) for i in range(0, len(places), batch_size)]
    # The sampler gives lists of places, so that a set in memory is read a batch at a time.
    return DataLoader(rows, batch_size=None, sampler=batches, num_workers=num_workers, pin_memory=pin_memory)
