"""What a data module is refused for: settings by themselves, and beside what was loaded."""

from collections.abc import Sequence
from typing import Any

from hjepa_pl.data.datasets import check_classes, check_dataset
from hjepa_pl.data.mixture import mixture_weights
from hjepa_pl.data.multicrop import ViewPlan
from hjepa_pl.data.numbers import check_statistics, check_whole
from hjepa_pl.data.settings import DatasetConfig, refuse_twice
from hjepa_pl.data.storage import ArrayImages
from hjepa_pl.functional.sizes import check_size
from hjepa_pl.types import ConfigError


def check_settings(data: Any) -> None:
    """Refuse what can be refused without looking at data."""
    check_whole("batch_size", data.batch_size, 1)
    if data.batch_size == 1:
        raise ConfigError("`batch_size=1` is refused: batch statistics need at least two images.")
    check_whole("views", data.views, 1)
    data.augmentation.check_views(data.views)
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
    for name, root in places_of(data):
        check_dataset(name, root)
    for name, classes in [(d.name, d.classes) for d in data.datasets] + [(p.name, p.classes) for p in data.probe]:
        check_classes(name, classes)
    mixture_weights(data.sampling, [d.weight for d in data.datasets], [1] * len(data.datasets), data.temperature)
    if len(data.datasets) == 1 and data.datasets[0].weight != 1.0:
        raise ConfigError(f"`datasets.weight={data.datasets[0].weight}` does nothing with one dataset: remove it.")
    refuse_twice("datasets", [_read_of(d) for d in data.datasets])
    refuse_twice("probe", [p.title or p.name for p in data.probe])
    check_statistics(data.mean, data.std, data.in_chans)
    if data.in_chans == 1:
        data.augmentation.check_gray_images("in_chans=1")


def check_channels(data: Any, sets: Sequence[Any], views: ViewPlan) -> None:
    """Refuse colour changes of images without colour, and tell the augmenters where there is none."""
    if data.in_chans == 1:
        data.augmentation.check_gray_images("in_chans=1")
    elif all(isinstance(s, ArrayImages) and s.images.shape[1] == 1 for s in sets):
        data.augmentation.check_gray_images("all datasets are grey")
        for augmenter in filter(None, (views.augmenter, views.local)):
            augmenter.colourless = True


def places_of(data: Any) -> list[tuple[str, str | None]]:
    """Return name and root of everything that is read, once each."""
    return list(dict.fromkeys((d.name, d.root) for d in [*data.datasets, *data.probe]))


def _read_of(config: DatasetConfig) -> str:
    """Return what is read of the disk, to find a dataset that is given twice."""
    listed = "" if config.classes is None else f", classes={config.classes}"
    return f"{config.name}, root={config.root}, split={config.split}{listed}"
