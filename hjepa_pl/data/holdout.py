"""Images that a probe holds out of the training mixture."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from hjepa_pl.data.config import DatasetConfig, ProbeConfig
from hjepa_pl.data.sources.class_folders import Tree, own_splits
from hjepa_pl.data.sources.images import Images
from hjepa_pl.data.sources.registry import tree_of
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.stratify import stratified
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import as_typed


def split_held_out(images: Images, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split a dataset for a probe, with the same fraction of every class.

    Returns:
        Indices of the images to train on and of those that are held out; both int64, ascending.
    """
    out = torch.zeros(len(images), dtype=torch.bool)
    out[stratified(images.labels, round(fraction * len(images)), hash_int(seed, Stream.ORDER, 2))] = True
    return torch.nonzero(~out)[:, 0], torch.nonzero(out)[:, 0]


def without_held_out(images: Images, config: DatasetConfig, probes: Sequence[ProbeConfig], seed: int) -> Images:
    """Return a dataset of the mixture without the images that probes hold out of it.

    Raises:
        ConfigError: If it overlaps with a dataset that is held out of, so that it would train on held-out images.
    """
    tree = tree_of(config.name, config.root, config.split, config.classes)
    for probe in probes:
        if tree is not None and probe.holdout is not None and _reads_same(probe, config, tree):
            images = images.subset(split_held_out(images, probe.holdout, seed)[0])
    return images


def check_holdouts(probes: Sequence[ProbeConfig]) -> None:
    """Reject `holdout` of a folder that has folders for its splits.

    Raises:
        ConfigError: Naming the folder.
    """
    for probe in probes:
        splits = [] if probe.holdout is None else own_splits(os.path.expanduser(str(probe.root)))
        if splits:
            raise ConfigError(
                f"invalid `probe.holdout={as_typed(probe.holdout)}`: {probe.root} has the split folder {splits[0]}; "
                f"remove holdout, or set root to {os.path.join(str(probe.root), splits[0])} (dataset {probe.name})."
            )


def resolved(tree: Tree) -> Tree:
    """Return a tree by the real path of its folder, to compare it with others."""
    return tree._replace(base=os.path.realpath(tree.base))


def _reads_same(probe: ProbeConfig, config: DatasetConfig, tree: Tree) -> bool:
    """Return whether a dataset and a probe read the same images; reject a partial overlap."""
    probed = tree_of(probe.name, probe.root, "train", probe.classes)
    assert probed is not None
    if resolved(tree) == resolved(probed):
        return True
    own, other = (os.path.join(resolved(t).base, "") for t in (tree, probed))
    if own.startswith(other) or other.startswith(own):
        raise ConfigError(
            f"invalid `datasets.root={as_typed(config.root)}`: {tree.base} overlaps with the images that the probe "
            f"{probe.title or probe.name} holds out; use the same root and classes for both (dataset {config.name})."
        )
    return False
