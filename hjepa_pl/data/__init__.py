"""Datasets, mixtures of datasets, and augmented views."""

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
