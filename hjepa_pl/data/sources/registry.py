"""The datasets by name."""

import os
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.data.sources.class_folders import TREES, Tree, find_tree
from hjepa_pl.data.sources.image_folder import Reading, load_folder
from hjepa_pl.data.sources.images import ArrayImages, Images, check_split
from hjepa_pl.data.sources.torchvision_sets import OFFICIAL, download_official, load_official
from hjepa_pl.functional.counters import Stream, hash_int, normal, uniform
from hjepa_pl.functional.stratify import stratified
from hjepa_pl.types import ConfigError


def _digits(root: str, split: str) -> ArrayImages:
    """Load scikit-learn's 1,797 scans of digits, (N, 1, 8, 8); a fixed fifth of every class is the test split."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]

    check_split("digits", split, ("train", "test"))
    data = load_digits()
    images = torch.from_numpy(np.rint(data.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(data.target.astype(np.int64))
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[stratified(labels, round(len(labels) / 5), seed=0)] = True
    chosen = test if split == "test" else ~test
    return ArrayImages(images[chosen], labels[chosen], [str(i) for i in range(10)])


def _digits_canvas(root: str, split: str) -> ArrayImages:
    """Load the digits, each turned by up to 40 degrees and shifted on a canvas, (N, 1, 16, 16)."""
    plain = _digits(root, split)
    place = torch.arange(len(plain))
    u = uniform(hash_int(0, Stream.AFFINE, split == "test"), place, 3) * 2 - 1
    angle = u[:, 0] * (40 * torch.pi / 180)
    shift = u[:, 1:] * 3.0
    # The canvas is twice the digit: its coordinates -1..1 are -2..2 in those of the digit.
    cos, sin = torch.cos(angle), torch.sin(angle)
    offset = torch.stack([cos * shift[:, 0] - sin * shift[:, 1], sin * shift[:, 0] + cos * shift[:, 1]], 1) / 4.0
    theta = torch.stack([2 * cos, -2 * sin, -offset[:, 0], 2 * sin, 2 * cos, -offset[:, 1]], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(plain), 1, 16, 16], align_corners=False)
    images = F.grid_sample(plain.images.float(), grid, align_corners=False)
    return ArrayImages(images.add_(0.5).to(torch.uint8), plain.labels, plain.classes)


def _fake(root: str, split: str) -> ArrayImages:
    """Make 256 images, (256, 3, 32, 32), of four classes that differ in colour and direction of their stripes."""
    check_split("fake", split, ("train", "test"))
    labels = torch.arange(256) % 4
    key = hash_int(0, Stream.ORDER, split == "test")
    phase = uniform(key, torch.arange(256), 1)[:, :, None] * 2 * torch.pi
    line = torch.arange(32) * (2 * torch.pi / 8)
    rows = line[None, :, None] * (labels % 2)[:, None, None]
    columns = line[None, None, :] * (1 - labels % 2)[:, None, None]
    stripes = torch.sin(rows + columns + phase)[:, None]
    tint = torch.tensor([[1.0, 0.5, 0.2], [1.0, 0.5, 0.2], [0.2, 0.5, 1.0], [0.2, 0.5, 1.0]])[labels][:, :, None, None]
    noise = normal(hash_int(key), (256, 3, 32, 32), torch.device("cpu"))
    images = (128 + 60 * stripes * tint + 20 * noise).clamp_(0, 255)
    return ArrayImages(images.to(torch.uint8), labels, ["a", "b", "c", "d"])


_LOADERS: dict[str, Callable[[str, str], Images]] = {
    "digits": _digits,
    "digits_canvas": _digits_canvas,
    "fake": _fake,
    **{name: partial(load_official, name) for name in OFFICIAL},
}
NAMES = (*_LOADERS, *TREES, "webdataset")
"""Names of all datasets."""
EMBEDDED = ("digits", "digits_canvas", "fake")
"""Those that need no files."""


def check_dataset(name: str, root: str | None) -> None:
    """Refuse an unknown name, a missing `root` and one that would do nothing, without looking at the disk."""
    if name not in NAMES:
        raise ConfigError(f"`name={name}` is not a dataset: use one of {', '.join(NAMES)}.")
    if name in EMBEDDED and root is not None:
        raise ConfigError(f"`root={root}` (of {name}) would do nothing, {name} needs no files: remove it.")
    if name == "folder" and root is None:
        raise ConfigError("`root=None` (of folder) is refused: give the folder that holds the images.")
    if name == "webdataset" and root is None:
        raise ConfigError(
            "`root=None` (of webdataset) is refused: give the tar shards, as SHARDS/train-{000..099}.tar."
        )


def check_classes(name: str, classes: str | None) -> None:
    """Refuse a class list for what is no tree of folders."""
    if classes is not None and name not in TREES:
        raise ConfigError(f"`classes={classes}` (of {name}) would do nothing, only {', '.join(TREES)} take a list.")


def tree_of(name: str, root: str | None = None, split: str = "train", classes: str | None = None) -> Tree | None:
    """Return what is read of a dataset that is a tree of folders, None for the others."""
    return find_tree(name, _folder(root), split, classes) if name in TREES else None


def load_dataset(
    name: str,
    root: str | None = None,
    split: str = "train",
    classes: str | None = None,
    reading: Reading | None = None,
) -> Images:
    """Load a dataset by name.

    Args:
        name: One of `NAMES`.
        root: Where it lies.
        split: Which part of it.
        classes: File with the class folders to read, for trees.
        reading: What the run brings along, for trees.
    """
    check_dataset(name, root)
    check_classes(name, classes)
    tree = tree_of(name, root, split, classes)
    if tree is not None:
        return load_folder(name, tree, reading or Reading(BadFiles()))
    return _LOADERS[name](_folder(root), split)


def download_dataset(name: str, root: str | None = None) -> None:
    """Fetch and verify a dataset that can be fetched, if it is not there already."""
    if name in OFFICIAL:
        download_official(name, _folder(root))


def _folder(root: str | None) -> str:
    return os.path.expanduser(root or "data")


def num_classes(labels: Tensor) -> int:
    """Return the number of classes of labels 0..n-1, 0 if there are none."""
    return int(labels.max()) + 1 if len(labels) else 0
