"""What a data module is refused for: settings by themselves, and beside what was loaded."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from hjepa_pl.data.augment.config import AugmentationConfig, of_dataset
from hjepa_pl.data.augment.multicrop import ViewPlan
from hjepa_pl.data.config import DatasetConfig, refuse_twice
from hjepa_pl.data.loading.mixture import mixture_weights
from hjepa_pl.data.sources.images import is_in_memory
from hjepa_pl.data.sources.registry import check_dataset, find_dataset
from hjepa_pl.data.sources.shards import local_path
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.numbers import check_statistics, check_whole
from hjepa_pl.utils.sizes import check_size


def check_settings(data: Any) -> None:
    """Refuse what can be refused without looking at data."""
    check_whole("batch_size", data.batch_size, 1)
    if data.batch_size == 1:
        raise ConfigError("`batch_size=1` is refused: batch statistics need at least two images.")
    check_whole("views", data.views, 1)
    data.augmentation.check_batch_size(data.batch_size)
    check_whole("eval_batch_size", data.eval_batch_size, 1)
    check_whole("seed", data.seed, 0)
    for key, value, low in (
        ("epoch_size", data.epoch_size, 1),
        ("in_chans", data.in_chans, 1),
        ("num_workers", data.num_workers, 0),
    ):
        if value is not None:
            check_whole(key, value, low)
    if data.img_size is not None:
        check_size("`img_size`", data.img_size, least=2)
    if not data.datasets:
        raise ConfigError("`datasets=[]` is refused: name at least one dataset.")
    for key, entries in (("datasets", data.datasets), ("probe", data.probe)):
        for entry in entries:
            check_dataset(key, entry.name, entry.root, entry.classes)
    mixture_weights(data.sampling, [d.weight for d in data.datasets], [1] * len(data.datasets), data.temperature)
    if len(data.datasets) == 1 and data.datasets[0].weight != 1.0:
        raise ConfigError(f"`datasets.weight={data.datasets[0].weight}` does nothing with one dataset: remove it.")
    refuse_twice("datasets", [_read_of(d) for d in data.datasets])
    refuse_twice("probe", [p.title or p.name for p in data.probe])
    check_statistics(data.mean, data.std, data.in_chans)
    _check_augmentations(data)


def _check_augmentations(data: Any) -> None:
    """Refuse what is mixed by set, several views that are the same, colours of grey, and what no set uses."""
    used = data.augmentations
    for i, augmentation in enumerate(used):
        for key in ("mixup", "cutmix"):
            own, of_all = getattr(augmentation, key), getattr(data.augmentation, key)
            if own != of_all:
                raise ConfigError(
                    f"`datasets.augmentation (of {data.datasets[i].name}).{key}={own:g}` is refused, batches are mixed "
                    f"as a whole: set it to {of_all:g}, as augmentation.{key} is (beside `preset` if there is one)."
                )
        with _owner(data, i):
            augmentation.check_views(data.views)
            if data.in_chans == 1:
                augmentation.check_gray_images("in_chans=1")
    if data.augmentation not in used and replace(data.augmentation, mixup=0.0, cutmix=0.0) != AugmentationConfig():
        raise ConfigError(
            "`augmentation` would do nothing where every dataset has its own, but for mixup and cutmix: remove its "
            "other parts, or a dataset's own."
        )


def _owner(data: Any, dataset: int) -> AbstractContextManager[None]:
    """Say of which dataset an augmentation is, where it has its own."""
    config = data.datasets[dataset]
    return nullcontext() if config.augmentation is None else of_dataset(config.name)


def check_channels(data: Any, sets: Sequence[Any], views: ViewPlan) -> None:
    """Refuse colour changes of images without colour, and tell the augmenters where there is none."""
    gray = [is_in_memory(s) and s.images.shape[1] == 1 for s in sets]
    for way, makers in enumerate(views.makers):
        its = [i for i in range(len(sets)) if views.way(i) == way]
        if not its:
            continue
        with _owner(data, its[0]):
            if data.in_chans == 1:
                makers.views.config.check_gray_images("in_chans=1")
            elif all(gray[i] for i in its):
                names = "datasets" if all(gray) else "of " + ", ".join(data.names[i] for i in its)
                makers.views.config.check_gray_images(f"all {names} are grey")
        # The data module's own goes by all sets, so that its views do not hang on what other sets have of their own.
        if data.in_chans != 1 and all(gray[i] for i in its) and (way or all(gray)):
            for augmenter in filter(None, makers):
                augmenter.colourless = True


def warn_of_temporary(data: Any) -> None:
    """Warn of data in folders that a restart empties."""
    for name, root in places_of(data):
        place = os.path.abspath(os.path.expanduser(root or "data"))
        here = not find_dataset(name).embedded and (name != "webdataset" or local_path(str(root)) is not None)
        if here and place.startswith(("/tmp/", "/var/tmp/")):
            rank_zero_warn(f"the data of {name} lies in {place}, a folder for temporary files.")


def places_of(data: Any) -> list[tuple[str, str | None]]:
    """Return name and root of everything that is read, once each."""
    return list(dict.fromkeys((d.name, d.root) for d in [*data.datasets, *data.probe]))


def _read_of(config: DatasetConfig) -> str:
    """Return what is read of the disk, to find a dataset that is given twice."""
    listed = "" if config.classes is None else f", classes={config.classes}"
    return f"{config.name}, root={config.root}, split={config.split}{listed}"
