"""The sets of a run, each loaded once, when a stage first needs it."""

import os
from collections.abc import Sequence

from torch import Tensor

from hjepa_pl.data.datasets import load_dataset
from hjepa_pl.data.probes import ProbeSplit, load_probe
from hjepa_pl.data.settings import DatasetConfig, ProbeConfig
from hjepa_pl.data.shards import ShardImages, open_shards
from hjepa_pl.data.storage import FileImages, Images, stratified
from hjepa_pl.functional.counters import Stream, hash_int


class LoadedSets:
    """Holds what is loaded.

    Attributes:
        train: The sets of the mixture, in order; empty until they are loaded.
        probe: Images and places of each probe split, in the order of `splits`.
        splits: What each probe split is.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.train: list[Images | ShardImages] = []
        self.probe: list[tuple[Images, Tensor]] = []
        self.splits: list[ProbeSplit] = []
        self._loaded: dict[tuple[str, str | None, str], Images] = {}

    def load_mixture(self, datasets: Sequence[DatasetConfig]) -> None:
        """Load what is trained on."""
        if not self.train:
            self.train = [self._part(d) for d in datasets]

    def load_probes(self, probes: Sequence[ProbeConfig]) -> None:
        """Load what is judged by."""
        if self.probe:
            return
        for config in probes:
            for split, images, index in load_probe(config, self.seed, self._load):
                self.splits.append(split)
                self.probe.append((images, index))

    def any_files(self) -> bool:
        """Return whether any loaded set lies in files."""
        return any(
            isinstance(s, FileImages | ShardImages) for s in [*self.train, *(images for images, _ in self.probe)]
        )

    def _load(self, name: str, root: str | None, split: str) -> Images:
        """Load a dataset, once: a probe's bank is often what is trained on."""
        key = (name, root, split)
        if key not in self._loaded:
            self._loaded[key] = load_dataset(name, root, split)
        return self._loaded[key]

    def _part(self, config: DatasetConfig) -> Images | ShardImages:
        if config.name == "webdataset":
            return open_shards(config)
        images = self._load(config.name, config.root, config.split)
        if config.fraction == 1.0:
            return images
        count = max(1, round(config.fraction * len(images)))
        return images.subset(stratified(images.labels, count, hash_int(self.seed, Stream.ORDER)))


def dataset_names(datasets: Sequence[DatasetConfig]) -> list[str]:
    """Return a name of each dataset for logs: with the split, root or number where the name alone is not unique."""
    plain = [d.name for d in datasets]
    names = [
        d.name if plain.count(d.name) == 1 else f"{os.path.basename(str(d.root or d.name).rstrip('/'))}-{d.split}"
        for d in datasets
    ]
    return [n if names.count(n) == 1 else f"{n}-{i}" for i, n in enumerate(names)]
