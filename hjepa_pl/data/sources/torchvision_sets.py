"""The datasets whose official files torchvision verifies and reads: CIFAR-10, CIFAR-100 and STL-10."""

import errno
import os
from http.client import HTTPException
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torchvision import datasets as tv
from torchvision.datasets.utils import extract_archive

from hjepa_pl.data.sources.fetch import fetch
from hjepa_pl.data.sources.images import ArrayImages, check_split
from hjepa_pl.types import ConfigError

OFFICIAL: dict[str, Any] = {"cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100, "stl10": tv.STL10}
"""torchvision's classes by name, with the constructor of CIFAR or of STL10."""
_GIGABYTES = {"cifar10": "0.2", "cifar100": "0.2", "stl10": "2.6"}
"""Size of the download, where it is known."""


def _size_of(name: str) -> str:
    return f" ({_GIGABYTES[name]} GB)" if name in _GIGABYTES else ""


def load_official(name: str, root: str, split: str) -> ArrayImages:
    """Read a dataset's official files.

    Args:
        name: A key of `OFFICIAL`.
        root: Folder of the files, as torchvision's `root`.
        split: `train` or `test`; for `stl10` also `unlabeled` and `train+unlabeled`.

    Raises:
        ConfigError: If a file is missing or its checksum is wrong.
    """
    splits = tv.STL10.splits if name == "stl10" else ("train", "test")
    check_split(name, split, splits)
    kwargs: dict[str, Any] = {"split": split} if name == "stl10" else {"train": split == "train"}
    try:
        data = OFFICIAL[name](root, **kwargs)
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"{root} does not hold the complete official files of {name}; get them with "
            f"`{_download_command(name, root)}`{_size_of(name)}."
        ) from error
    images = torch.from_numpy(np.ascontiguousarray(data.data))
    if name != "stl10":
        images = images.permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(np.asarray(data.labels if name == "stl10" else data.targets)).long()
    return ArrayImages(images, labels, getattr(data, "classes", [str(i) for i in range(10)]))


def download_official(name: str, folder: str) -> None:
    """Download, verify and extract a dataset, unless its files are there.

    An interrupted download is resumed (`fetch`). Of several processes one downloads, and the others wait for it.

    Raises:
        ConfigError: If the download fails.
    """
    dataset = OFFICIAL[name]
    if _is_complete(name, folder):
        return
    try:
        os.makedirs(folder, exist_ok=True)
        with FileLock(os.path.join(folder, f".{name}.lock")):
            if not _is_complete(name, folder):  # another process may have downloaded it
                archive = os.path.join(folder, dataset.filename)
                fetch(dataset.url, archive, dataset.tgz_md5)
                extract_archive(archive, folder)
                dataset(folder)
    except (RuntimeError, OSError, HTTPException) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # has a message of its own
        raise ConfigError(
            f"{folder} lacks official files of {name} and their download failed ({error}); "
            f"run `{_download_command(name, folder)}` where there is a network."
        ) from error


def _is_complete(name: str, folder: str) -> bool:
    """Return whether all files are there with the right checksums."""
    try:
        OFFICIAL[name](folder)
    except (RuntimeError, OSError):
        return False
    return True


def _download_command(name: str, root: str) -> str:
    dataset = OFFICIAL[name].__name__
    return f"python -c \"from torchvision.datasets import {dataset}; {dataset}('{root}', download=True)\""
