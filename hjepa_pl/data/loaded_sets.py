"""The datasets of a run, each loaded once, when a stage first needs it."""

import os
from collections.abc import Hashable, Sequence

from torch import Tensor

from hjepa_pl.data.config import DatasetConfig, ProbeConfig
from hjepa_pl.data.probe_splits import ProbeSplit, held_out, load_probe
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.data.sources.class_folders import Tree, own_splits
from hjepa_pl.data.sources.images import Images, IndexedImages
from hjepa_pl.data.sources.registry import load_images, tree_of
from hjepa_pl.data.sources.shards import open_shards
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.stratify import stratified
from hjepa_pl.types import ConfigError


class LoadedSets:
    """Loads datasets, each once and with one look at the disk.

    Args:
        seed: Of the images that are held out and of fractions.
        bad: Takes the files that cannot be decoded.

    Attributes:
        train: The sets of the mixture, in order; empty until they are loaded.
        probe: Images and indices, (N,) int64, of each probe split, in the order of `splits`.
        splits: The probe splits.
    """

    def __init__(self, seed: int, bad: BadFiles) -> None:
        self.seed = seed
        self.bad = bad
        self.train: list[Images] = []
        self.probe: list[tuple[IndexedImages, Tensor]] = []
        self.splits: list[ProbeSplit] = []
        self._trees: dict[tuple[str, str | None, str, str | None], Tree | None] = {}
        self._loaded: dict[Hashable, IndexedImages] = {}
        self._held: list[tuple[ProbeConfig, Tree]] | None = None

    def load_mixture(self, datasets: Sequence[DatasetConfig], probes: Sequence[ProbeConfig]) -> None:
        """Load the training sets, without the images that a probe holds out."""
        if not self.train:
            held = self._holdouts(probes)
            self.train = [self._part(d, held) for d in datasets]

    def load_probes(self, probes: Sequence[ProbeConfig]) -> None:
        """Load the probe sets."""
        if self.probe:
            return
        self._holdouts(probes)  # may reject
        for config in probes:
            for split, images, index in load_probe(config, self.seed, self._load):
                self.splits.append(split)
                self.probe.append((images, index))

    def any_files(self) -> bool:
        """Return whether any loaded set is not in memory."""
        return any(not s.in_memory for s in [*self.train, *(images for images, _ in self.probe)])

    def _tree(self, name: str, root: str | None, split: str, classes: str | None) -> Tree | None:
        """Return the tree of a dataset, None of one that is no tree."""
        key = (name, root, split, classes)
        if key not in self._trees:
            self._trees[key] = tree_of(*key)
        return self._trees[key]

    def _load(self, name: str, root: str | None, split: str, classes: str | None) -> IndexedImages:
        """Load a dataset, once: a probe's bank is often a training set too."""
        tree = self._tree(name, root, split, classes)
        key = (name, root, split) if tree is None else _real(tree)
        if key not in self._loaded:
            self._loaded[key] = load_images(name, root, split, tree, self.bad)
        return self._loaded[key]

    def _holdouts(self, probes: Sequence[ProbeConfig]) -> list[tuple[ProbeConfig, Tree]]:
        """Return the probes that hold images out, and their trees.

        Raises:
            ConfigError: If such a probe has split folders of its own.
        """
        if self._held is None:
            self._held = []
            for probe in probes:
                if probe.holdout is not None:
                    _reject_splits(probe)
                    tree = self._tree(probe.name, probe.root, "train", probe.classes)
                    assert tree is not None
                    self._held.append((probe, _real(tree)))
        return self._held

    def _part(self, config: DatasetConfig, held: Sequence[tuple[ProbeConfig, Tree]]) -> Images:
        """Load a dataset of the mixture, or the part of it that is trained on."""
        if config.name == "webdataset":
            return open_shards(str(config.root), config.samples, config.shuffle_buffer)
        images = self._load(config.name, config.root, config.split, config.classes)
        tree = self._tree(config.name, config.root, config.split, config.classes)
        for probe, other in held:
            if tree is not None and _is_held_out(config, _real(tree), probe, other):
                assert probe.holdout is not None
                images = images.subset(held_out(images, probe.holdout, self.seed)[0])
        if config.fraction == 1.0:
            return images
        count = max(1, round(config.fraction * len(images)))
        return images.subset(stratified(images.labels, count, hash_int(self.seed, Stream.ORDER)))


def _real(tree: Tree) -> Tree:
    return tree._replace(base=os.path.realpath(tree.base))


def _reject_splits(probe: ProbeConfig) -> None:
    splits = own_splits(os.path.expanduser(str(probe.root)))
    if splits:
        raise ConfigError(
            f"invalid `probe.holdout={probe.holdout:g}`: {probe.root} has the folder {splits[0]} for a split; remove "
            f"holdout, or set root to {os.path.join(str(probe.root), splits[0])} (dataset {probe.name})."
        )


def _is_held_out(config: DatasetConfig, tree: Tree, probe: ProbeConfig, other: Tree) -> bool:
    """Return whether a probe holds images out of a dataset, both given with their trees.

    Raises:
        ConfigError: If they overlap without being the same, so that training would see some of these images.
    """
    if tree == other:
        return True
    own, probed = (os.path.join(t.base, "") for t in (tree, other))
    if own.startswith(probed) or probed.startswith(own):
        raise ConfigError(
            f"dataset {config.name} reads {tree.base}, where probe {probe.title or probe.name} holds images out; give "
            "both the same root and classes."
        )
    return False


def dataset_names(datasets: Sequence[DatasetConfig]) -> list[str]:
    """Return the name of each dataset in logs: with the root, split or number if the name alone is not unique."""
    plain = [d.name for d in datasets]
    names = [
        d.name if plain.count(d.name) == 1 else f"{os.path.basename(str(d.root or d.name).rstrip('/'))}-{d.split}"
        for d in datasets
    ]
    return [n if names.count(n) == 1 else f"{n}-{i}" for i, n in enumerate(names)]
