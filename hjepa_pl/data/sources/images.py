"""Where images live: in memory as one uint8 tensor, or in files that are decoded when they are drawn."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hjepa_pl.data.sources.decode import ImageFile
from hjepa_pl.types import ConfigError


class ArrayImages:
    """Images of one size, all in memory.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, -1 where there is none.
        classes: Names of the classes, in the order of the labels.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        self.images = images
        self.labels = labels
        self.classes = list(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "ArrayImages":
        """Return the images at `index` as a set of their own."""
        return ArrayImages(self.images[index], self.labels[index], self.classes)

    def on(self, device: torch.device) -> "ArrayImages":
        """Return the set with its images, but not its labels, on a device."""
        return ArrayImages(self.images.to(device), self.labels, self.classes)


class FileImages:
    """Images in files, each decoded when it is asked for.

    Attributes:
        labels: (N,) int64, -1 where there is none.
        classes: Names of the classes, in the order of the labels.
    """

    def __init__(self, paths: Sequence[str] | np.ndarray, labels: Tensor, classes: Sequence[str]) -> None:
        # One array of bytes: a list of a million strings would be copied page by page into every worker by its
        # reference counts.
        self._paths = paths if isinstance(paths, np.ndarray) else np.array([os.fsencode(p) for p in paths])
        self.labels = labels
        self.classes = list(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Return the path of one image."""
        return os.fsdecode(bytes(self._paths[index]))

    def open(self, index: int) -> ImageFile:
        """Read the bytes of one image; `OSError` if they are none."""
        with open(self.path(index), "rb") as file:
            return ImageFile(file.read())

    def read(self, index: int, channels: int | None) -> Tensor:
        """Decode one image to (C, H, W) uint8; `OSError` if it is broken."""
        return self.open(index).pixels(channels)

    def subset(self, index: Tensor) -> "FileImages":
        """Return the images at `index` as a set of their own."""
        return FileImages(self._paths[index.numpy()], self.labels[index], self.classes)


Images = ArrayImages | FileImages


def check_split(name: str, split: str, splits: tuple[str, ...]) -> None:
    """Refuse a split that a dataset does not have."""
    if split not in splits:
        raise ConfigError(f"`split={split}` is not one of {name}'s: use {', '.join(splits)}.")
