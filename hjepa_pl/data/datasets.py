"""The datasets by name."""

import os
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import datasets as tv

from hjepa_pl.data.folder import load_folder, split_folder
from hjepa_pl.data.storage import ArrayImages, Images, stratified
from hjepa_pl.functional.counters import Stream, hash_int, normal, uniform
from hjepa_pl.types import ConfigError

_TORCHVISION: dict[str, Any] = {"cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100, "stl10": tv.STL10}
_GIGABYTES = {"cifar10": "0.2", "cifar100": "0.2", "stl10": "2.6"}


def _digits(root: str, split: str) -> ArrayImages:
    """Load scikit-learn's 1,797 scans of digits, (N, 1, 8, 8); a fixed fifth of every class is the test split."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]

    _check_split("digits", split, ("train", "test"))
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
    _check_split("fake", split, ("train", "test"))
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


def _official(name: str) -> Callable[[str, str], ArrayImages]:
    """Return the loader of a dataset whose official files torchvision reads and verifies."""

    def load(root: str, split: str) -> ArrayImages:
        splits = tv.STL10.splits if name == "stl10" else ("train", "test")
        _check_split(name, split, splits)
        kwargs: dict[str, Any] = {"split": split} if name == "stl10" else {"train": split == "train"}
        try:
            data = _TORCHVISION[name](root, **kwargs)
        except (RuntimeError, OSError) as error:
            raise ConfigError(
                f"`root={root}` (of {name}) does not hold the complete official files: get them with "
                f"`{_download_command(name, root)}` ({_GIGABYTES[name]} GB)."
            ) from error
        images = torch.from_numpy(np.ascontiguousarray(data.data))
        if name != "stl10":
            images = images.permute(0, 3, 1, 2).contiguous()
        labels = torch.as_tensor(np.asarray(data.labels if name == "stl10" else data.targets)).long()
        return ArrayImages(images, labels, getattr(data, "classes", [str(i) for i in range(10)]))

    return load


def _download_command(name: str, root: str) -> str:
    kind = _TORCHVISION[name].__name__
    return f"python -c \"from torchvision.datasets import {kind}; {kind}('{root}', download=True)\""


def imagenet100_classes() -> list[str]:
    """Return the usual hundred ImageNet classes (CMC's list), in the order of their labels."""
    return files("hjepa_pl.data").joinpath("imagenet100.txt").read_text().split()


def _imagenet100(root: str, split: str) -> Images:
    """List a hundred classes of an ImageNet folder; no other class folder is looked into."""
    base = split_folder("imagenet100", root, split, must=False)
    classes = imagenet100_classes()
    missing = [c for c in classes if not os.path.isdir(os.path.join(base, c))]
    if missing:
        raise ConfigError(
            f"`root={root}` (of imagenet100) lacks {len(missing)} of the 100 class folders in {base}, the first is "
            f"{missing[0]}: give the ImageNet folder with train/<wnid> and val/<wnid>, or use the name folder."
        )
    return load_folder("imagenet100", base, classes)


def _imagenet(root: str, split: str) -> Images:
    return load_folder("imagenet", split_folder("imagenet", root, split, must=True))


def _folder(root: str, split: str) -> Images:
    return load_folder("folder", split_folder("folder", root, split, must=False))


_LOADERS: dict[str, Callable[[str, str], Images]] = {
    "digits": _digits,
    "digits_canvas": _digits_canvas,
    "fake": _fake,
    "cifar10": _official("cifar10"),
    "cifar100": _official("cifar100"),
    "stl10": _official("stl10"),
    "imagenet100": _imagenet100,
    "imagenet": _imagenet,
    "folder": _folder,
}
NAMES = (*_LOADERS, "webdataset")
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


def load_dataset(name: str, root: str | None = None, split: str = "train") -> Images:
    """Load a dataset by name."""
    check_dataset(name, root)
    return _LOADERS[name](os.path.expanduser(root or "data"), split)


def download_dataset(name: str, root: str | None = None) -> None:
    """Fetch and verify a dataset that can be fetched, if it is not there already."""
    if name not in _TORCHVISION:
        return
    folder = os.path.expanduser(root or "data")
    try:
        _TORCHVISION[name](folder, download=True)
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"`root={folder}` (of {name}) lacks official files and fetching them failed ({error}): "
            f"run `{_download_command(name, folder)}` where there is a network."
        ) from error


def _check_split(name: str, split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        raise ConfigError(f"`split={split}` is not one of {name}'s: use {', '.join(splits)}.")


def num_classes(labels: Tensor) -> int:
    """Return the number of classes of labels 0..n-1, 0 if there are none."""
    return int(labels.max()) + 1 if len(labels) else 0
