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
    `digits_canvas` are the same scans.

    Args:
        sets: The mixture.
        fraction: Of the images of every dataset; less, if that is more than `MAX_IMAGES` in all.
        seed: Of the choice.

    Raises:
        ConfigError: If it is less than `MIN_IMAGES` in all.
    """
    total = sum(len(images) for images in sets)
    share = min(fraction, MAX_IMAGES / total)
    train, held = list[Images](), list[IndexedImages]()
    for images in sets:
        count = min(max(1, round(share * len(images))), len(images) - 1)  # one image is left to train on
        out = torch.zeros(len(images), dtype=torch.bool)
        out[stratified(images.labels, count, hash_int(seed, Stream.HOLDOUT))] = True
        train.append(images.subset(torch.nonzero(~out)[:, 0]))
        held.append(images.subset(torch.nonzero(out)[:, 0]))
    number = sum(len(images) for images in held)
    if number < MIN_IMAGES:
        need = math.ceil(1000 * MIN_IMAGES / total) / 1000
        fix = f"set it to {need:g} or more" if need <= 0.5 else "remove it, or use more images"
        raise ConfigError(
            f"invalid `data.holdout={as_typed(fraction)}`: holds out {number} of {total} images, and its metrics need "
            f"{MIN_IMAGES}; {fix}."
        )
    rank_zero_info(f"data.holdout: {number} of {total} images are not trained on and give the val/ metrics.")
    return train, held


def check_apart(datasets: Sequence[DatasetConfig], trees: Sequence[Tree | None]) -> None:
    """Reject two datasets that read the same folder: one would train on what the other holds out.

    Args:
        datasets: The mixture.
        trees: The folders that each reads, by real path; None of a dataset without any.

    Raises:
        ConfigError: If two overlap.
    """
    for i, (config, tree) in enumerate(zip(datasets, trees, strict=True)):
        for other in trees[:i]:
            if tree is not None and other is not None and _overlap(tree, other):
                raise ConfigError(
                    f"invalid `datasets.root={as_typed(config.root)}`: overlaps with another dataset, {other.base}, "
                    "which would train on what data.holdout leaves out of this one; read each folder once, or remove "
                    f"holdout (dataset {config.name})."
                )


def _overlap(one: Tree, other: Tree) -> bool:
    """Return whether two trees may hold the same image."""
    if one.base == other.base:
        return one.folders is None or other.folders is None or bool({*one.folders} & {*other.folders})
    return one.base.startswith(f"{other.base}/") or other.base.startswith(f"{one.base}/")
