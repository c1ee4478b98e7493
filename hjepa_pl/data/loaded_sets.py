"""Datasets of a run, each loaded once when a stage first needs it."""

import os
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from hjepa_pl.data.config import DatasetConfig, ProbeConfig
from hjepa_pl.data.held_images import check_apart, hold_out
from hjepa_pl.data.holdout import find_holdouts, resolved, without_held_out
from hjepa_pl.data.probe_splits import ProbeSplit, load_probe
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.data.sources.class_folders import Tree
from hjepa_pl.data.sources.images import Images, IndexedImages, is_indexed
from hjepa_pl.data.sources.registry import load_images, tree_of
from hjepa_pl.data.sources.shards import open_shards
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.stratify import stratified
from hjepa_pl.types import ConfigError


class LoadedSets:
    """The loaded datasets.

    Args:
        seed: Seed of the images that are held out, and of fractions.
        bad: Collects the files that cannot be decoded.

    Attributes:
        train: Datasets of the mixture, in order; empty until they are loaded.
        held: The images that `data.holdout` leaves out of each of them; empty without one.
        probe: Dataset and selected indices of each probe split, in the order of `splits`.
        splits: Descriptions of the probe splits.
    """

    def __init__(self, seed: int, bad: BadFiles) -> None:
        self.seed = seed
        self.bad = bad
        self.train: list[Images] = []
        self.held: list[IndexedImages] = []
        self._whole: list[Images] = []
        self.probe: list[tuple[IndexedImages, Tensor]] = []
        self.splits: list[ProbeSplit] = []
        self._trees: dict[tuple[str, str | None, str, str | None], Tree | None] = {}
        self._loaded: dict[Hashable, IndexedImages] = {}

    def load_mixture(
        self, datasets: Sequence[DatasetConfig], probes: Sequence[ProbeConfig], holdout: float | None = None
    ) -> None:
        """Load the datasets of the mixture without the images that probes hold out.

        Args:
            datasets: The mixture.
            probes: All probes.
            holdout: Fraction of the rest that is put in `held`; None or 0 for none.
        """
        if self.train:
            return
        holdouts = find_holdouts(probes, self._probe_tree)
        trees: list[Tree | None] = []
        train: list[Images] = []  # assigned when complete: an error leaves no part of a mixture behind
        for config in datasets:
            if config.name == "webdataset":
                train.append(open_shards(str(config.root), config.samples, config.shuffle_buffer))
                continue
            images = self._load(config.name, config.root, config.split, config.classes)
            tree = self._tree(config.name, config.root, config.split, config.classes)
            trees.append(None if tree is None else resolved(tree))
            if tree is not None:
                images = without_held_out(images, config, resolved(tree), holdouts, self.seed)
            train.append(_part(images, config.fraction, self.seed))
        self._whole = train
        if holdout:
            check_apart(datasets, trees)
            train, self.held = hold_out([s for s in train if is_indexed(s)], holdout, self.seed)
        self.train = train

    def load_probes(self, probes: Sequence[ProbeConfig]) -> None:
        """Load the probe datasets."""
        if self.probe:
            return
        find_holdouts(probes, self._probe_tree)  # raises for a wrong `holdout`
        loaded = [part for config in probes for part in load_probe(config, self.seed, self._load)]
        self.splits = [split for split, _, _ in loaded]
        self.probe = [(images, index) for _, images, index in loaded]

    def clean_parts(self, names: Sequence[str]) -> list[tuple[IndexedImages, Tensor, str]]:
        """Return dataset, indices and name of all that a validation reads clean: `probe`, then `held`.

        Args:
            names: Of the datasets of the mixture.
        """
        probes = zip(self.probe, self.splits, strict=True)
        parts = [(images, index, f"probe {split.name} ({split.split})") for (images, index), split in probes]
        held = [(s, torch.arange(len(s)), f"held out of {n}") for s, n in zip(self.held, names, strict=False)]
        return parts + [part for part in held if len(part[1])]

    def any_files(self) -> bool:
        """Return whether any loaded dataset is read from files while it is used."""
        return any(not s.in_memory for s in [*self.train, *(images for images, _ in self.probe)])

    def all_images(self) -> list[tuple[IndexedImages, Tensor]]:
        """Return each dataset of the mixture, `held` included, with the indices of all its images.

        Raises:
            ConfigError: If one of them is `webdataset`.
        """
        pairs = [(s, torch.arange(len(s))) for s in self._whole if is_indexed(s)]
        if len(pairs) < len(self._whole):
            raise ConfigError(
                "invalid `datasets.name=webdataset`: prediction needs images by index; unpack the shards into a "
                "folder, and set name to folder."
            )
        return pairs

    def _load(self, name: str, root: str | None, split: str, classes: str | None) -> IndexedImages:
        """Load a dataset once; a probe often uses one of the mixture."""
        tree = self._tree(name, root, split, classes)
        key = (name, root, split) if tree is None else resolved(tree)
        if key not in self._loaded:
            self._loaded[key] = load_images(name, root, split, tree, self.bad)
        return self._loaded[key]

    def _tree(self, name: str, root: str | None, split: str, classes: str | None) -> Tree | None:
        """Return the class folders that are read, None of a dataset without any; found once."""
        key = (name, root, split, classes)
        if key not in self._trees:
            self._trees[key] = tree_of(*key)
        return self._trees[key]

    def _probe_tree(self, probe: ProbeConfig) -> Tree | None:
        tree = self._tree(probe.name, probe.root, "train", probe.classes)
        return None if tree is None else resolved(tree)


def _part(images: IndexedImages, fraction: float, seed: int) -> IndexedImages:
    """Return a fraction of the images, the same of every class."""
    if fraction == 1.0:
        return images
    count = max(1, round(fraction * len(images)))
    return images.subset(stratified(images.labels, count, hash_int(seed, Stream.ORDER)))


def dataset_names(datasets: Sequence[DatasetConfig]) -> list[str]:
    """Return a unique name of each dataset for logs: where `name` is not unique, with root and split or index."""
    plain = [d.name for d in datasets]
    names = [
        d.name if plain.count(d.name) == 1 else f"{os.path.basename(str(d.root or d.name).rstrip('/'))}-{d.split}"
        for d in datasets
    ]
    return [n if names.count(n) == 1 else f"{n}-{i}" for i, n in enumerate(names)]
