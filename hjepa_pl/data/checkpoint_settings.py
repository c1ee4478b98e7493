"""What decides which images are drawn and how they look: a resumed run must have the same."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.data.config import DatasetConfig
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import from_plain, to_plain


def stored_settings(data: Any) -> dict[str, Any]:
    """Return the settings of a data module as plain values, for checkpoints."""
    plain = ["batch_size", "views", "epoch_size", "sampling", "temperature", "seed"]
    if any(d.name == "webdataset" for d in data.datasets):
        plain.append("num_workers")  # which shards a worker reads depends on how many there are
    held = [{"root": p.root, "classes": p.classes, "share": p.holdout} for p in data.probe if p.holdout is not None]
    return {
        **({"held_out": held} if held else {}),
        "datasets": [_stored_dataset(d, data.augmentation) for d in data.datasets],
        **{key: getattr(data, key) for key in plain},
        "augmentation": to_plain(data.augmentation),
        "mean": None if data.mean is None else list(data.mean),
        "std": None if data.std is None else list(data.std),
        "multicrop": to_plain(data.multicrop),
    }


def complete_stored(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings with the parts of augmentations that came after they were stored."""
    found = _complete(stored)
    if "datasets" in found:
        found["datasets"] = [_complete(d) for d in found["datasets"]]
    return found


def _stored_dataset(config: DatasetConfig, augmentation: AugmentationConfig) -> dict[str, Any]:
    """Return a dataset's settings; naming the data module's augmentation again is as good as not naming it."""
    return to_plain(replace(config, augmentation=None) if config.augmentation == augmentation else config)


def _complete(stored: Mapping[str, Any]) -> dict[str, Any]:
    if stored.get("augmentation") is None:
        return dict(stored)
    return {**stored, "augmentation": _complete_parts(stored["augmentation"])}


def _complete_parts(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parts; those that are stored as they are if they are refused today."""
    try:
        return to_plain(from_plain(AugmentationConfig, stored, "augmentation"))
    except ConfigError:
        return dict(stored)
