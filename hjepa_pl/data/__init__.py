"""Datasets, mixtures of them, and views of images on the device."""

from hjepa_pl.data.augmentation import AugmentationConfig
from hjepa_pl.data.datamodule import MultiDatasetDataModule
from hjepa_pl.data.multicrop import MultiCropConfig
from hjepa_pl.data.probes import ProbeSplit
from hjepa_pl.data.settings import DatasetConfig, ProbeConfig

__all__ = [
    "AugmentationConfig",
    "DatasetConfig",
    "MultiCropConfig",
    "MultiDatasetDataModule",
    "ProbeConfig",
    "ProbeSplit",
]
