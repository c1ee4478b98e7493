"""Datasets, mixtures of them, and views of images on the device."""

from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.data.augment.multicrop import MultiCropConfig
from hjepa_pl.data.config import DatasetConfig, ProbeConfig
from hjepa_pl.data.datamodule import MultiDatasetDataModule
from hjepa_pl.data.probe_splits import ProbeSplit

__all__ = [
    "AugmentationConfig",
    "DatasetConfig",
    "MultiCropConfig",
    "MultiDatasetDataModule",
    "ProbeConfig",
    "ProbeSplit",
]
