"""Sets of images: in memory as one uint8 tensor, or in files that are decoded when they are drawn."""

import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hjepa_pl.data.sources.decode import ImageFile
from hjepa_pl.types import ConfigError


@runtime_checkable
class Images(Protocol):
    """A set of images that a mixture can draw from: `ArrayImages`, `FileImages`, `ShardImages` or a class of yours."""

    @property
    def in_memory(self) -> bool:
        """Whether all images are in memory, as in `ArrayImages` only, so that no worker has to decode them."""

    @property
    def streamed(self) -> bool:
        """Whether images come in the order of a stream, as in `ShardImages` only, so that none has an index."""

    def __len__(self) -> int: ...


@runtime_checkable
class IndexedImages(Images, Protocol):
    """A set whose images have an index: what a dataset's loader returns.

    Attributes:
        labels: (N,) int64, -1 for images without a label.
        classes: Names of the classes, in the order of the labels.
    """

    labels: Tensor
    classes: list[str]

    def subset(self, index: Tensor) -> "IndexedImages":
        """Return the images at `index`, (n,) int64, as a set of their own."""


class EncodedImages(IndexedImages, Protocol):
    """A set whose images are decoded when they are drawn, as in `FileImages`."""

    def item(self, index: int) -> "Item":
        """Return one image, not read yet."""


class Item(Protocol):
    """One image, not decoded yet."""

    @property
    def path(self) -> str:
        """Where it is, for messages."""

    @property
    def label(self) -> int:
        """Its label, -1 without one."""

    def open(self) -> ImageFile:
        """Read its bytes; `OSError` if they are no image."""


class FileItem(NamedTuple):
    """An image in a file."""

    path: str
    label: int

    def open(self) -> ImageFile:
        """Read the file; `OSError` if it is no image."""
        with open(self.path, "rb") as file:
            return ImageFile(file.read())


class ArrayImages:
    """Images of one size, all in memory.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, -1 for images without a label.
        classes: Names of the classes, in the order of the labels.
    """

    in_memory, streamed = True, False

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        self.images = images
        self.labels = labels
        self.classes = list(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "ArrayImages":
        """Return the images at `index`, (n,) int64, as a set of their own."""
        return ArrayImages(self.images[index], self.labels[index], self.classes)

    def on(self, device: torch.device) -> "ArrayImages":
        """Return the set with its images, but not its labels, on a device."""
        return ArrayImages(self.images.to(device), self.labels, self.classes)


class FileImages:
    """Images in files, decoded when they are read.

    Args:
        paths: N paths.
        labels: (N,) int64, -1 for images without a label.
        classes: Names of the classes, in the order of the labels.
    """

    in_memory, streamed = False, False

    def __init__(self, paths: Sequence[str] | np.ndarray, labels: Tensor, classes: Sequence[str]) -> None:
        # One array of bytes: the reference counts of a million strings would be copied, page by page, into every
        # worker.
        self._paths = paths if isinstance(paths, np.ndarray) else np.array([os.fsencode(p) for p in paths])
        self.labels = labels
        self.classes = list(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Return the path of one image."""
        return os.fsdecode(bytes(self._paths[index]))

    def item(self, index: int) -> FileItem:
        """Return one image, not read yet."""
        return FileItem(self.path(index), int(self.labels[index]))

    def read(self, index: int, channels: int | None) -> Tensor:
        """Decode one image to (C, H, W) uint8 (see `ImageFile.pixels`); `OSError` if that fails."""
        return self.item(index).open().pixels(channels)

    def subset(self, index: Tensor) -> "FileImages":
        """Return the images at `index`, (n,) int64, as a set of their own."""
        return FileImages(self._paths[index.numpy()], self.labels[index], self.classes)


def is_in_memory(images: Images) -> TypeGuard[ArrayImages]:
    """Return whether a set is in memory (and tell the type checker)."""
    return images.in_memory


def is_indexed(images: Images) -> TypeGuard[IndexedImages]:
    """Return whether a set's images have an index (and tell the type checker)."""
    return not images.streamed


def is_encoded(images: Images) -> TypeGuard[EncodedImages]:
    """Return whether a set's images have an index and are decoded when drawn (and tell the type checker)."""
    return not images.in_memory and not images.streamed


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """Reject a split that a dataset does not have.

    Raises:
        ConfigError: If `split` is not one of `splits`.
    """
    if split not in splits:
        names = " or ".join([", ".join(splits[:-1]), splits[-1]])
        raise ConfigError(f"invalid `datasets.split={split}`: must be {names} (dataset {name}).")
