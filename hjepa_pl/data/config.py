"""Config of the datasets, the probes and the loading of batches."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Strict

from hjepa_pl.data.augment.config import AugmentationConfig, augmentation_config
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import Count, Fraction, Hint, Name, Pair, PathText, Positive, PositiveFraction, settings
from hjepa_pl.utils.wording import as_typed

Side = Annotated[int, Ge(2)]
"""Height or width of a view, in pixels."""


@settings("datasets", entry="dataset")
class DatasetConfig:
    """One dataset of the training mixture."""

    name: Name
    """`digits`, `digits_canvas`, `cifar10`, `cifar100`, `stl10`, `imagenet100`, `imagenet`, `folder`, `webdataset`,
    `fake`, or the import path of a function of (root, split) that returns images (`my_package.my_module.load`)."""
    weight: Positive = 1.0
    """Weight in the mixture, relative to the other datasets' weights."""
    root: PathText | None = None
    """Folder of the data; null is `data` (`folder` needs one, `digits` and `fake` take none). For `webdataset` the tar
    shards: a path, a folder, a glob, a pattern with {000..099}, a URL or pipe:COMMAND; the order of images then depends
    on the numbers of processes and workers too."""
    split: Name = "train"
    """Split to draw from: `train`, `test`, and others that the dataset has (`unlabeled` for `stl10`)."""
    fraction: PositiveFraction = 1.0
    """Fraction of the images to use, the same of every class, chosen by the seed."""
    classes: PathText | None = None
    """Text file with the class folders to read, one per line, in the order of their labels; a tab and a readable name
    may follow. Null is all folders, for `imagenet100` the usual hundred. For `imagenet`, `imagenet100`, `folder`."""
    samples: Count | None = None
    """For `webdataset`: images in all shards. If null, local shards are counted; for others it is the number that the
    dataset adds to an epoch without `epoch_size`."""
    shuffle_buffer: Count | None = None
    """For `webdataset`: undecoded samples in the shuffle buffer of each worker; null is 1000, 1 keeps the order of the
    shards."""
    augmentation: str | dict[str, Any] | AugmentationConfig | None = None
    """Augmentation of this dataset: a preset or a mapping of keys, in place of the data module's `augmentation`; null
    is that. Mixup and CutMix act on whole batches, so they are the same for all datasets; the area of a local crop
    stays `multicrop.local_scale`. An instance holds an `AugmentationConfig` or None."""

    def __post_init__(self) -> None:
        """Resolve the augmentation, and reject keys that have no effect."""
        if self.augmentation is not None:
            object.__setattr__(self, "augmentation", _own_augmentation(self.augmentation))
        if self.name == "webdataset":
            for key, default in (("split", "train"), ("fraction", 1.0)):
                if getattr(self, key) != default:
                    raise ConfigError(
                        f"invalid `datasets.{key}={as_typed(getattr(self, key))}`: has no effect on shards; remove it, "
                        "and name the shards to read in root."
                    )
            return
        for key in ("samples", "shuffle_buffer"):
            if getattr(self, key) is not None:
                raise ConfigError(f"invalid `datasets.{key}={getattr(self, key)}`: is for webdataset only; remove it.")


def _own_augmentation(value: Any) -> AugmentationConfig:
    try:
        return augmentation_config(value)
    except ConfigError as error:
        raise ConfigError(str(error).replace("augmentation", "datasets.augmentation", 1)) from None


@settings("probe", entry="dataset")
class ProbeConfig:
    """A labeled dataset on which the features are evaluated during training."""

    name: Name
    """Name of a dataset that has labels and the splits `train` and `test`."""
    root: PathText | None = None
    """Folder of the data; null is `data`."""
    max_train: Annotated[int, Ge(2)] = 10000
    """Maximum number of images to train the probes on, the same fraction of every class."""
    max_test: Count = 10000
    """Maximum number of images to test the probes on."""
    title: Name | None = None
    """Name in the metrics; null is the dataset's name."""
    classes: PathText | None = None
    """Text file with the class folders to read, as in `datasets`."""
    holdout: Annotated[float, Gt(0), Le(0.9)] | None = None
    """For a `folder` without folders for its splits: fraction of its images, the same of every class, chosen by the
    seed, that probes are tested on and that is left out of `datasets`."""

    def __post_init__(self) -> None:
        """Reject datasets that cannot be probed or held out of."""
        if self.name == "webdataset":
            raise ConfigError(
                "invalid `probe.name=webdataset`: probes need images by index; unpack some of the shards into "
                "train/<class> and val/<class>, and set name to folder."
            )
        if self.holdout is not None and self.name != "folder":
            raise ConfigError(
                f"invalid `probe.holdout={as_typed(self.holdout)}`: is for folder only, other datasets have a test "
                "split; remove it."
            )


@settings("data")
class LoadingConfig:
    """Numbers of the data module, with their bounds; `MultiDatasetDataModule` describes them."""

    batch_size: Annotated[int, Ge(2), Hint("batch statistics need two images")]
    views: Count
    epoch_size: Count | None
    sampling: Literal["weighted", "balanced", "concat", "temperature"]
    temperature: Positive | None
    num_workers: Annotated[int, Ge(0)] | None
    eval_batch_size: Count
    mean: Annotated[tuple[Annotated[float, Gt(-1e6), Lt(float("inf"))], ...], Strict(False)] | None
    std: Annotated[tuple[Positive, ...], Strict(False)] | None
    seed: Annotated[int, Ge(0)]
    img_size: Side | Pair[Side] | None
    in_chans: Count | None
    max_bad_fraction: Fraction
    holdout: Annotated[float, Ge(0), Le(0.5)] | None


def as_list(value: Any) -> Any:
    """Return a list of datasets or probes; `value` is a name, a mapping, a config or a list of them."""
    single = isinstance(value, str | Mapping | DatasetConfig | ProbeConfig)
    entries = [value] if single else value
    return [{"name": e} if isinstance(e, str) else e for e in entries] if isinstance(entries, list | tuple) else entries
