"""The sets of a run, each loaded once, when a stage first needs it."""

import os
from collections.abc import Hashable, Sequence

from torch import Tensor

from hjepa_pl.data.config import DatasetConfig, ProbeConfig
from hjepa_pl.data.probe_splits import ProbeSplit, held_out, load_probe
from hjepa_pl.data.sources.class_folders import Tree, own_splits
from hjepa_pl.data.sources.image_folder import Reading
from hjepa_pl.data.sources.images import FileImages, Images
from hjepa_pl.data.sources.registry import load_dataset, tree_of
from hjepa_pl.data.sources.shards import ShardImages, open_shards
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.stratify import stratified
from hjepa_pl.types import ConfigError


class LoadedSets:
    """Holds what is loaded.

    Attributes:
        train: The sets of the mixture, in order; empty until they are loaded.
        probe: Images and places of each probe split, in the order of `splits`.
        splits: What each probe split is.
    """

    def __init__(self, seed: int, reading: Reading) -> None:
        self.seed = seed
        self.reading = reading
        self.train: list[Images | ShardImages] = []
        self.probe: list[tuple[Images, Tensor]] = []
        self.splits: list[ProbeSplit] = []
        self._loaded: dict[Hashable, Images] = {}

    def load_mixture(self, datasets: Sequence[DatasetConfig], probes: Sequence[ProbeConfig]) -> None:
        """Load what is trained on, which is nothing that a probe holds out."""
        if not self.train:
            self.train = [self._part(d, probes) for d in datasets]

    def load_probes(self, probes: Sequence[ProbeConfig]) -> None:
        """Load what is judged by."""
        if self.probe:
            return
        for config in probes:
            if config.holdout is not None:
                _refuse_splits(config)
            for split, images, index in load_probe(config, self.seed, self._load):
                self.splits.append(split)
                self.probe.append((images, index))

    def any_files(self) -> bool:
        """Return whether any loaded set lies in files."""
        return any(
            isinstance(s, FileImages | ShardImages) for s in [*self.train, *(images for images, _ in self.probe)]
        )

    def _load(self, name: str, root: str | None, split: str, classes: str | None) -> Images:
        """Load a dataset, once: a probe's bank is often what is trained on."""
        tree = tree_of(name, root, split, classes)
        key = (name, root, split) if tree is None else _real(tree)
        if key not in self._loaded:
            self._loaded[key] = load_dataset(name, root, split, classes, self.reading)
        return self._loaded[key]

    def _part(self, config: DatasetConfig, probes: Sequence[ProbeConfig]) -> Images | ShardImages:
        if config.name == "webdataset":
            return open_shards(str(config.root), config.samples, config.shuffle_buffer)
        images = self._load(config.name, config.root, config.split, config.classes)
        tree = tree_of(config.name, config.root, config.split, config.classes)
        for probe in probes:
            if tree is not None and probe.holdout is not None and _holds_out_of(probe, config, tree):
                images = images.subset(held_out(images, probe.holdout, self.seed)[0])
        if config.fraction == 1.0:
            return images
        count = max(1, round(config.fraction * len(images)))
        return images.subset(stratified(images.labels, count, hash_int(self.seed, Stream.ORDER)))


def _real(tree: Tree) -> Tree:
    return tree._replace(base=os.path.realpath(tree.base))


def _refuse_splits(probe: ProbeConfig) -> None:
    there = own_splits(os.path.expanduser(str(probe.root)))
    if there:
        raise ConfigError(
            f"`probe.holdout={probe.holdout}` (of {probe.name}) is refused: {probe.root} has the folder {there[0]} for "
            f"a split; remove holdout, or point root at {os.path.join(str(probe.root), there[0])}."
        )


def _holds_out_of(probe: ProbeConfig, config: DatasetConfig, tree: Tree) -> bool:
    """Return whether a probe holds images out of a dataset; refuse what would train on some of them all the same."""
    _refuse_splits(probe)
    probed = tree_of(probe.name, probe.root, "train", probe.classes)
    assert probed is not None
    if _real(tree) == _real(probed):
        return True
    own, other = (os.path.join(_real(t).base, "") for t in (tree, probed))
    if own.startswith(other) or other.startswith(own):
        raise ConfigError(
            f"`datasets` {config.name} reads {tree.base}, where images of `probe` {probe.title or probe.name} are held "
            "out: give both the same root and classes."
        )
    return False


def dataset_names(datasets: Sequence[DatasetConfig]) -> list[str]:
    """Return a name of each dataset for logs: with the split, root or number where the name alone is not unique."""
    plain = [d.name for d in datasets]
    names = [
        d.name if plain.count(d.name) == 1 else f"{os.path.basename(str(d.root or d.name).rstrip('/'))}-{d.split}"
        for d in datasets
    ]
    return [n if names.count(n) == 1 else f"{n}-{i}" for i, n in enumerate(names)]
