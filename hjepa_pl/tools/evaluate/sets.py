"""The labeled datasets of an evaluation."""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import Tensor

from hjepa_pl.data.config import ProbeConfig, as_list
from hjepa_pl.data.loaded_sets import LoadedSets
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.data.sources.images import FileImages, is_in_memory
from hjepa_pl.data.sources.registry import download_dataset
from hjepa_pl.tools.evaluate.config import EvalSet
from hjepa_pl.tools.evaluate.extract import Split
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import from_plain_list


class LabeledSet(NamedTuple):
    """A labeled dataset with its two splits."""

    name: str
    classes: list[str]
    train: Split
    test: Split

    @property
    def train_y(self) -> Tensor:
        """Labels of the training images, (N,) int64."""
        return self.train.images.labels[self.train.rows]

    @property
    def test_y(self) -> Tensor:
        """Labels of the test images, (M,) int64."""
        return self.test.images.labels[self.test.rows]


def sets_of_run(folder: Path | None) -> tuple[list[EvalSet], int]:
    """Return the probe datasets of a run, by its config.yaml, and the seed of their splits.

    Raises:
        ConfigError: If there is no run, or it has no probe datasets.
    """
    fix = "name them with --sets, for example --sets '[{name: cifar10}]'."
    path = None if folder is None else folder / "config.yaml"
    if path is None or not path.is_file():
        raise ConfigError(f"no datasets to judge on: the checkpoint is not in the folder of a run; {fix}")
    try:
        run = yaml.safe_load(path.read_text(encoding="utf-8"))
        probes: Any = run["data"]["init_args"]["probe"] or []
        seed = int(run["seed_everything"])
    except (yaml.YAMLError, OSError, KeyError, TypeError, ValueError):
        raise ConfigError(f"no datasets to judge on: {path} has no data.probe; {fix}") from None
    if not probes:
        raise ConfigError(f"no datasets to judge on: the run had no probe datasets (data.probe in {path}); {fix}")
    return list(from_plain_list(EvalSet, as_list(probes), "sets")), seed


def open_sets(sets: Sequence[EvalSet], seed: int, bad: BadFiles) -> list[LabeledSet]:
    """Load datasets, and download those that can be.

    Args:
        sets: Which.
        seed: Of the images that are chosen.
        bad: Takes the files that cannot be decoded.

    Raises:
        ConfigError: If one is missing, lacks labels, or has a class that only its test split has.
    """
    loaded = LoadedSets(seed, bad)
    for entry in sets:
        download_dataset(entry.name, entry.root)
    loaded.load_probes([_as_probe(entry) for entry in sets])
    found = []
    splits = list(zip(loaded.splits, loaded.probe, strict=True))
    for (described, (train, train_index)), (_, (test, test_index)) in zip(splits[::2], splits[1::2], strict=True):
        name = described.name
        classes = train.classes or [str(i) for i in range(described.num_classes)]
        parts = (Split(f"{name} (train)", train, train_index), Split(f"{name} (test)", test, test_index))
        found.append(LabeledSet(name, list(classes), *parts))
        only_tested = sorted({*found[-1].test_y.tolist()} - {*found[-1].train_y.tolist()})
        if only_tested:
            raise ConfigError(
                f"The dataset {name} has test images of the class {classes[only_tested[0]]} and no training image of "
                "it; add some, or raise max_train."
            )
    names = [entry.name for entry in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two of --sets are called {twice}; give one of them a title.")
    return found


def _as_probe(entry: EvalSet) -> ProbeConfig:
    """Return a dataset as a probe of the data module."""
    return ProbeConfig(
        name=entry.name, root=entry.root, max_train=entry.max_train or sys.maxsize,
        max_test=entry.max_test or sys.maxsize, title=entry.title, classes=entry.classes, holdout=entry.holdout,
    )  # fmt: skip


def images_hash(split: Split) -> str:
    """Return a hash of a split: its labels, and its pixels in memory or the names and sizes of its files.

    It does not depend on the machine or the folder, so that evaluations elsewhere can be compared.
    """
    digest = hashlib.sha256(split.images.labels[split.rows].numpy().tobytes())
    if is_in_memory(split.images):
        digest.update(split.images.images[split.rows].cpu().numpy().tobytes())
    elif isinstance(split.images, FileImages):
        paths = [split.images.path(row) for row in split.rows.tolist()]
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
        for path in paths:
            digest.update(f"{os.path.relpath(path, folder)} {os.path.getsize(path)}\n".encode(errors="surrogateescape"))
    else:
        digest.update(split.rows.numpy().tobytes())
    return digest.hexdigest()[:16]
