"""Images of the mixture that are never trained on: `data.holdout`, which needs no labels."""

import math
from collections.abc import Sequence

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from hjepa_pl.data.config import DatasetConfig
from hjepa_pl.data.sources.class_folders import Tree
from hjepa_pl.data.sources.images import Images, IndexedImages
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.stratify import stratified
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import as_typed

MIN_IMAGES = 32
"""Fewest held-out images: ranks of spectra are bounded by their number."""
MAX_IMAGES = 4096
"""Most held-out images. More would cost time in every validation and hardly change a figure."""


def hold_out(sets: Sequence[IndexedImages], fraction: float, seed: int) -> tuple[list[Images], list[IndexedImages]]:
    """Split each dataset into images to train on and images that are held out.

    The choice is a function of the seed and the datasets, so that a resumed run makes it again; with labels, the same
    fraction of every class is held out. Datasets of the same labels hold out the same indices: those of `digits` and
    `digits_canvas` are the same scans (`check_apart` rejects other fractions of them).

    Args:
        sets: The mixture.
        fraction: Of the images of every dataset; less if that is more than `MAX_IMAGES` in all, more if it is less than
            `MIN_IMAGES`.
        seed: Of the choice.

    Raises:
        ConfigError: If `MIN_IMAGES` are more than half of the images.
    """
    total = sum(len(images) for images in sets)
    if total < 2 * MIN_IMAGES:
        raise ConfigError(
            f"invalid `data.holdout={as_typed(fraction)}`: its metrics need {MIN_IMAGES} images, more than half of the "
            f"{total} of the mixture; remove it, or use more images."
        )
    share = max(min(fraction, MAX_IMAGES / total), MIN_IMAGES / total)
    train, held = list[Images](), list[IndexedImages]()
    for images in sets:
        count = min(math.ceil(share * len(images)), len(images) - 1)  # one image is left to train on
        out = torch.zeros(len(images), dtype=torch.bool)
        out[stratified(images.labels, count, hash_int(seed, Stream.HOLDOUT))] = True
        train.append(images.subset(torch.nonzero(~out)[:, 0]))
        held.append(images.subset(torch.nonzero(out)[:, 0]))
    number = sum(len(images) for images in held)
    rank_zero_info(f"data.holdout: {number} of {total} images are not trained on and give the val/ metrics.")
    return train, held


def check_apart(datasets: Sequence[DatasetConfig], trees: Sequence[Tree | None]) -> None:
    """Reject two datasets that have images in common: one would train on what the other holds out.

    Args:
        datasets: The mixture.
        trees: The folders that each reads, by real path; None of a dataset without any.

    Raises:
        ConfigError: If two overlap.
    """
    for i, (config, tree) in enumerate(zip(datasets, trees, strict=True)):
        for other_config, other in zip(datasets[:i], trees[:i], strict=True):
            if tree is not None and other is not None:
                if _overlap(tree, other):
                    raise _rejected("root", config, f"overlaps with another dataset, {other.base}", "read each folder")
            elif _same_images(config, other_config):
                raise _rejected("split", config, f"overlaps with split {other_config.split}", "read each image")
            elif {config.name, other_config.name} == _SAME_SCANS and config.fraction != other_config.fraction:
                raise _rejected("fraction", config, f"is another than that of {other_config.name}", "read each scan")


_SAME_SCANS = {"digits", "digits_canvas"}


def _same_images(one: DatasetConfig, other: DatasetConfig) -> bool:
    """Return whether two datasets without folders of their own have a split in common, as `train+unlabeled`."""
    return (one.name, one.root) == (other.name, other.root) and bool(
        {*one.split.split("+")} & {*other.split.split("+")}
    )


def _rejected(key: str, config: DatasetConfig, problem: str, fix: str) -> ConfigError:
    return ConfigError(
        f"invalid `datasets.{key}={as_typed(getattr(config, key))}`: {problem}, which would train on what data.holdout "
        f"leaves out of this one; {fix} once, or remove holdout (dataset {config.name})."
    )


def _overlap(one: Tree, other: Tree) -> bool:
    """Return whether two trees may hold the same image."""
    if one.base == other.base:
        return one.folders is None or other.folders is None or bool({*one.folders} & {*other.folders})
    return one.base.startswith(f"{other.base}/") or other.base.startswith(f"{one.base}/")
