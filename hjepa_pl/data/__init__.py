"""Datasets, mixtures of datasets, and augmented views."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hjepa_pl.data.augment.config import AugmentationConfig
    from hjepa_pl.data.augment.multicrop import MultiCropConfig
    from hjepa_pl.data.augment.part import Part
    from hjepa_pl.data.augment.parts import PARTS
    from hjepa_pl.data.config import DatasetConfig, ProbeConfig
    from hjepa_pl.data.datamodule import MultiDatasetDataModule
    from hjepa_pl.data.probe_splits import ProbeSplit
    from hjepa_pl.data.sources.images import ArrayImages, FileImages

__all__ = [
    "PARTS",
    "ArrayImages",
    "AugmentationConfig",
    "DatasetConfig",
    "FileImages",
    "MultiCropConfig",
    "MultiDatasetDataModule",
    "Part",
    "ProbeConfig",
    "ProbeSplit",
]

_HOMES = {
    "PARTS": "augment.parts",
    "ArrayImages": "sources.images",
    "AugmentationConfig": "augment.config",
    "DatasetConfig": "config",
    "FileImages": "sources.images",
    "MultiCropConfig": "augment.multicrop",
    "MultiDatasetDataModule": "datamodule",
    "Part": "augment.part",
    "ProbeConfig": "config",
    "ProbeSplit": "probe_splits",
}


def __getattr__(name: str) -> Any:
    """Import the public classes at first use: the data module needs Lightning, the augmentations do not."""
    if name in _HOMES:
        return getattr(import_module(f"hjepa_pl.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'hjepa_pl.data' has no attribute '{name}'")
