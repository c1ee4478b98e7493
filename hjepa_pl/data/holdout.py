"""Images that a probe holds out of the training mixture."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_pl.data.config import DatasetConfig, ProbeConfig
from hjepa_pl.data.sources.class_folders import Tree, own_splits
from hjepa_pl.data.sources.images import IndexedImages
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.stratify import stratified
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import as_typed


class Holdout(NamedTuple):
    """A probe that holds images out, and what it reads."""

    probe: ProbeConfig
    tree: Tree
    """By real path, as `resolved` returns it."""
    fraction: float


def split_held_out(images: IndexedImages, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split a dataset for a probe, with the same fraction of every class.

    Returns:
        Indices of the images to train on and of those that are held out; both int64, ascending.
    """
    out = torch.zeros(len(images), dtype=torch.bool)
    out[stratified(images.labels, round(fraction * len(images)), hash_int(seed, Stream.ORDER, 2))] = True
    return torch.nonzero(~out)[:, 0], torch.nonzero(out)[:, 0]


def find_holdouts(probes: Sequence[ProbeConfig], find_tree: Callable[[ProbeConfig], Tree | None]) -> list[Holdout]:
    """Return the probes that hold images out.

    Args:
        probes: All probes.
        find_tree: Returns the folders that a probe reads, by real path.

    Raises:
        ConfigError: If the folder of such a probe has folders for its splits.
    """
    holdouts = []
    for probe in probes:
        if probe.holdout is None:
            continue
        splits = own_splits(os.path.expanduser(str(probe.root)))
        if splits:
            raise ConfigError(
                f"invalid `probe.holdout={as_typed(probe.holdout)}`: {probe.root} has the split folder {splits[0]}; "
                f"remove holdout, or set root to {os.path.join(str(probe.root), splits[0])} (dataset {probe.name})."
            )
        tree = find_tree(probe)
        assert tree is not None  # `holdout` is for `folder` only
        holdouts.append(Holdout(probe, tree, probe.holdout))
    return holdouts


def without_held_out(
    images: IndexedImages, config: DatasetConfig, tree: Tree, holdouts: Sequence[Holdout], seed: int
) -> IndexedImages:
    """Return a dataset of the mixture without the images that probes hold out of it.

    Args:
        images: The dataset.
        config: Its config.
        tree: The folders that it reads, by real path.
        holdouts: The probes that hold images out.
        seed: Seed of the split.

    Raises:
        ConfigError: If it overlaps with a dataset that is held out of without being the same.
    """
    for probe, probed, fraction in holdouts:
        if tree == probed:
            images = images.subset(split_held_out(images, fraction, seed)[0])
            continue
        own, other = (os.path.join(t.base, "") for t in (tree, probed))
        if own.startswith(other) or other.startswith(own):
            raise ConfigError(
                f"invalid `datasets.root={as_typed(config.root)}`: {tree.base} overlaps with the images that the "
                f"probe {probe.title or probe.name} holds out; use the same root and classes for both "
                f"(dataset {config.name})."
            )
    return images


def resolved(tree: Tree) -> Tree:
    """Return a tree by the real path of its folder, to compare it with others."""
    return tree._replace(base=os.path.realpath(tree.base))
