"""Where images live: in memory as one uint8 tensor, or in files that are decoded when they are drawn."""

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hjepa_pl.data.decode import ImageFile
from hjepa_pl.functional.constants import constant
from hjepa_pl.types import ConfigError

LUMA = (0.2989, 0.587, 0.114)


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


def adapt_channels(images: Tensor, channels: int) -> Tensor:
    """Return (B, C, H, W) images with `channels` channels: grey is repeated, colour becomes luma."""
    have = images.shape[1]
    if have == channels:
        return images
    if have == 1 and channels == 3:
        return images.expand(-1, 3, -1, -1)
    if have == 3 and channels == 1:
        luma = constant(LUMA, images.device)
        gray = torch.einsum("bchw,c->bhw", images.float(), luma)[:, None]
        return gray if images.is_floating_point() else gray.add_(0.5).to(images.dtype)
    raise ConfigError(f"`in_chans={channels}` does not fit images of {have} channels: use 1 or 3.")


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Choose `count` places so that every class keeps its share (to one image), by the seed.

    Args:
        labels: (N,) int64; -1 counts as a class of its own.
        count: How many to choose; all if there are fewer.
        seed: Which ones.

    Returns:
        (min(N, count),) int64, ascending.
    """
    total = len(labels)
    if count >= total:
        return torch.arange(total)
    generator = np.random.Generator(np.random.PCG64(seed))
    order = torch.from_numpy(generator.permutation(total))
    # The rank of each image within its class, over the class size, is spread evenly; the smallest are chosen.
    by_class = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.unique_consecutive(labels[by_class], return_counts=True)[1]
    rank = torch.cat([(torch.arange(int(s)) + 0.5) / int(s) for s in sizes])
    chosen = by_class[torch.argsort(rank, stable=True)[:count]]
    return chosen.sort().values


def check_split(name: str, split: str, splits: tuple[str, ...]) -> None:
    """Refuse a split that a dataset does not have."""
    if split not in splits:
        raise ConfigError(f"`split={split}` is not one of {name}'s: use {', '.join(splits)}.")
