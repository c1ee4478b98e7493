"""What a user may set about the data: frozen records that refuse what cannot be meant."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from hjepa_pl.data.augment.config import AugmentationConfig, augmentation_config, of_dataset
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.numbers import check_name, check_number, check_whole


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One dataset of the training mixture."""

    name: str
    """`digits`, `digits_canvas`, `cifar10`, `cifar100`, `stl10`, `imagenet100`, `imagenet`, `folder`, `webdataset`,
    `fake`, or the import path of a function of (root, split) that returns images (`my_package.my_module.load`)."""
    weight: float = 1.0
    """Share of the mixture, relative to the other datasets' weights."""
    root: str | None = None
    """Where the data lies; `data` if not given (`folder` needs one, `digits` and `fake` take none). For `webdataset`
    the tar shards: a path, a folder, a glob, a pattern with {000..099}, a URL or pipe:COMMAND; the order of images then
    depends on the numbers of processes and workers too."""
    split: str = "train"
    """Which part to draw from: `train`, `test`, and what else the dataset has (`unlabeled` for `stl10`)."""
    fraction: float = 1.0
    """Share of the images to use, the same of every class, chosen by the seed."""
    classes: str | None = None
    """Text file with the class folders to read, one a line, in the order of their labels; a name may follow after a
    tab. All there are if not given, the usual hundred for `imagenet100`. For `imagenet`, `imagenet100`, `folder`."""
    samples: int | None = None
    """For `webdataset`: images in all shards. Local shards are counted if it is not given; for others it is what the
    set adds to an epoch where epoch_size is not given."""
    shuffle_buffer: int | None = None
    """For `webdataset`: samples, undecoded, of the buffer that each worker shuffles through; 1000 if not given, 1 for
    the order in the shards."""
    augmentation: str | dict[str, Any] | AugmentationConfig | None = None
    """How a view of this set's images is made: a preset's name, or a mapping of parts, as the data module's
    `augmentation`, which it replaces whole; that if not given. Mixup and CutMix are of whole batches, and so the same
    for all sets; the share of the image that a local crop covers stays `multicrop.local_scale`. Once made, a record of
    parts or None."""

    def __post_init__(self) -> None:
        _take_paths(self)
        check_name("datasets.name", self.name)
        check_name("datasets.split", self.split)
        check_number(f"datasets.weight (of {self.name})", self.weight, 0.0, open_low=True)
        check_number(f"datasets.fraction (of {self.name})", self.fraction, 0.0, 1.0, open_low=True)
        if self.augmentation is not None:
            with of_dataset(self.name):
                object.__setattr__(self, "augmentation", augmentation_config(self.augmentation))
        streamed = self.name == "webdataset"
        for key in ("samples", "shuffle_buffer"):
            value = getattr(self, key)
            if value is not None:
                check_whole(f"datasets.{key} (of {self.name})", value, 1)
                if not streamed:
                    raise ConfigError(f"`datasets.{key}={value}` (of {self.name}) is for webdataset only: remove it.")
        if streamed and (self.split != "train" or self.fraction != 1.0):
            key, value = ("split", self.split) if self.split != "train" else ("fraction", self.fraction)
            raise ConfigError(
                f"`datasets.{key}={value}` (of webdataset) would do nothing: name the shards to read in root instead."
            )


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """One labelled dataset on which the features are judged during training."""

    name: str
    """Name of a dataset that has labels and the splits `train` and `test`."""
    root: str | None = None
    """Where the data lies; `data` if not given."""
    max_train: int = 10000
    """At most so many images in the bank that the probes learn from, the same share of every class."""
    max_test: int = 10000
    """At most so many images to be judged on."""
    title: str | None = None
    """Name in the metrics; the dataset's name if not given."""
    classes: str | None = None
    """Text file with the class folders to read, as in `datasets`."""
    holdout: float | None = None
    """For a `folder` without folders for its splits: share of its images, the same of every class, chosen by the seed,
    that is judged on and left out of `datasets`."""

    def __post_init__(self) -> None:
        _take_paths(self)
        check_name("probe.name", self.name)
        if self.name == "webdataset":
            raise ConfigError(
                "`probe.name=webdataset` is refused, a probe needs its images one by one: unpack some of the shards "
                "into train/<class> and val/<class>, and name it folder."
            )
        if self.title is not None:
            check_name("probe.title", self.title)
        if self.holdout is not None:
            check_number(f"probe.holdout (of {self.name})", self.holdout, 0.0, 0.9, open_low=True)
            if self.name != "folder":
                raise ConfigError(
                    f"`probe.holdout={self.holdout}` (of {self.name}) is refused: only folder has no test split of its "
                    "own; remove it."
                )
        check_whole(f"probe.max_train (of {self.name})", self.max_train, 2)
        check_whole(f"probe.max_test (of {self.name})", self.max_test, 1)


def _take_paths(config: "DatasetConfig | ProbeConfig") -> None:
    """Turn pathlib's paths into text, as a config holds them."""
    for key in ("root", "classes"):
        if isinstance(getattr(config, key), PurePath):
            object.__setattr__(config, key, str(getattr(config, key)))


def as_list(given: Any) -> Any:
    """Return a list of datasets or probes from a name, one mapping or record, or a list of any of them."""
    single = isinstance(given, str | Mapping | DatasetConfig | ProbeConfig)
    entries = [given] if single else given
    return [{"name": e} if isinstance(e, str) else e for e in entries] if isinstance(entries, list | tuple) else entries


def refuse_twice(key: str, names: list[str]) -> None:
    """Refuse a name that is given twice."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"`{key}` names {name} twice: remove one or tell them apart.")
