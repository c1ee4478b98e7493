"""Checks of combinations of datasets, augmentations and loading."""

import os
from collections.abc import Sequence
from dataclasses import replace

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from hjepa_pl.data.augment.config import AugmentationConfig, dataset_augmentation
from hjepa_pl.data.augment.multicrop import ViewPlan
from hjepa_pl.data.config import DatasetConfig, LoadingConfig, ProbeConfig
from hjepa_pl.data.loading.image_spec import check_statistics
from hjepa_pl.data.loading.mixture import mixture_weights
from hjepa_pl.data.sources.images import Images, is_in_memory
from hjepa_pl.data.sources.registry import check_dataset, find_dataset
from hjepa_pl.data.sources.shards import local_path
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import as_typed


def check_datasets(datasets: Sequence[DatasetConfig], probes: Sequence[ProbeConfig], loading: LoadingConfig) -> None:
    """Check names, roots and weights of datasets and probes without access to the disk.

    Raises:
        ConfigError: For the first that is wrong.
    """
    if not datasets:
        raise ConfigError("invalid `datasets=[]`: must be a list of at least one dataset.")
    for config in datasets:
        check_dataset("datasets", config.name, config.root, config.classes)
    for probe in probes:
        check_dataset("probe", probe.name, probe.root, probe.classes)
    if loading.holdout and any(d.name == "webdataset" for d in datasets):
        raise ConfigError(
            f"invalid `data.holdout={as_typed(loading.holdout)}`: needs images by index, and webdataset is a stream; "
            "remove it, or unpack the shards into a folder (name: folder)."
        )
    weights = [d.weight for d in datasets]
    mixture_weights(loading.sampling, weights, [1] * len(weights), loading.temperature)
    if len(datasets) == 1 and weights[0] != 1.0:
        raise ConfigError(
            f"invalid `datasets.weight={as_typed(weights[0])}`: has no effect with one dataset; remove it."
        )
    _check_unique("datasets", [_identity(d) for d in datasets])
    _check_unique("probe", [p.title or p.name for p in probes])
    check_statistics(loading.mean, loading.std, loading.in_chans)


def augmentations_of(datasets: Sequence[DatasetConfig], default: AugmentationConfig) -> list[AugmentationConfig]:
    """Return the augmentation of each dataset: its own, or that of the data module."""
    return [d.augmentation if isinstance(d.augmentation, AugmentationConfig) else default for d in datasets]


def check_augmentations(datasets: Sequence[DatasetConfig], default: AugmentationConfig, loading: LoadingConfig) -> None:
    """Check the augmentations of all datasets.

    Args:
        datasets: Datasets of the mixture.
        default: The data module's augmentation.
        loading: With views, batch size and channels.

    Raises:
        ConfigError: If datasets are mixed differently, views would be equal, colors of gray images would be changed, or
            no dataset uses the data module's augmentation.
    """
    default.check_batch_size(loading.batch_size)
    used = augmentations_of(datasets, default)
    for config, augmentation in zip(datasets, used, strict=True):
        with dataset_augmentation(_owner(config)):
            for key in ("mixup", "cutmix"):
                own, common = getattr(augmentation, key), getattr(default, key)
                if own != common:
                    raise ConfigError(
                        f"invalid `augmentation.{key}={as_typed(own)}`: batches are mixed as a whole; set it to "
                        f"{as_typed(common)}, as for all datasets."
                    )
            augmentation.check_views(loading.views)
            if loading.in_chans == 1:
                augmentation.check_gray_images("in_chans=1")
    if default not in used and replace(default, mixup=0.0, cutmix=0.0) != AugmentationConfig():
        raise ConfigError(
            "invalid `augmentation`: has no effect except for mixup and cutmix, because every dataset has its own; "
            "remove its other keys, or the augmentation of a dataset."
        )


def check_gray_sets(
    datasets: Sequence[DatasetConfig],
    names: Sequence[str],
    sets: Sequence[Images],
    plan: ViewPlan,
    channels: int,
) -> None:
    """Reject color changes of gray images, and tell the augmenters that all their images are gray.

    Args:
        datasets: Datasets of the mixture.
        names: Their names for messages.
        sets: The loaded datasets.
        plan: The views.
        channels: Channels of the views.

    Raises:
        ConfigError: Naming the key that has no effect.
    """
    gray = [is_in_memory(s) and s.images.shape[1] == 1 for s in sets]
    for index, augmenters in enumerate(plan.augmenters):
        users = [i for i in range(len(sets)) if plan.index(i) == index]
        all_gray = bool(users) and all(gray[i] for i in users)
        if users and (channels == 1 or all_gray):
            which = "all datasets" if all(gray) else ", ".join(names[i] for i in users)
            with dataset_augmentation(_owner(datasets[users[0]])):
                augmenters.views.config.check_gray_images("in_chans=1" if channels == 1 else f"those of {which}")
        # The data module's own augmenter depends on all datasets, so that adding an augmentation to one of them does
        # not change the views of the others.
        if channels != 1 and all_gray and (index or all(gray)):
            for augmenter in filter(None, augmenters):
                augmenter.images_are_gray = True


def warn_of_temporary(sources: Sequence[tuple[str, str | None]]) -> None:
    """Warn of data in folders that a restart empties.

    Args:
        sources: Names and roots of datasets.
    """
    for name, root in sources:
        path = os.path.abspath(os.path.expanduser(root or "data"))
        local = not find_dataset(name).embedded and (name != "webdataset" or local_path(str(root)) is not None)
        if local and path.startswith(("/tmp/", "/var/tmp/")):
            rank_zero_warn(f"the data of {name} is in {path}, a folder for temporary files.")


def sources_of(datasets: Sequence[DatasetConfig], probes: Sequence[ProbeConfig]) -> list[tuple[str, str | None]]:
    """Return name and root of every dataset and probe, without duplicates."""
    return list(dict.fromkeys([(d.name, d.root) for d in datasets] + [(p.name, p.root) for p in probes]))


def _owner(config: DatasetConfig) -> str | None:
    """Return the name of a dataset with an augmentation of its own."""
    return None if config.augmentation is None else config.name


def _check_unique(key: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"invalid `{key}`: contains {name} twice; remove one, or make them differ.")


def _identity(config: DatasetConfig) -> str:
    """Return what a dataset reads, to find duplicates."""
    given = {"root": config.root, "split": config.split, "classes": config.classes}
    return ", ".join([config.name, *(f"{key}={value}" for key, value in given.items() if value is not None)])
