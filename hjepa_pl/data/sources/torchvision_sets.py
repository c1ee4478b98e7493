"""The datasets whose official files torchvision fetches, verifies and reads."""

import contextlib
import errno
import os
from http.client import HTTPException
from typing import Any

import numpy as np
import torch
from torchvision import datasets as tv
from torchvision.datasets.utils import extract_archive

from hjepa_pl.data.sources.fetch import fetch
from hjepa_pl.data.sources.images import ArrayImages, check_split
from hjepa_pl.data.sources.locks import locked
from hjepa_pl.types import ConfigError

OFFICIAL: dict[str, Any] = {"cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100, "stl10": tv.STL10}
"""torchvision's classes by name."""
_GIGABYTES = {"cifar10": "0.2", "cifar100": "0.2", "stl10": "2.6"}


def load_official(name: str, root: str, split: str) -> ArrayImages:
    """Read a dataset's official files; a file whose sum is wrong is refused like one that is missing."""
    splits = tv.STL10.splits if name == "stl10" else ("train", "test")
    check_split(name, split, splits)
    kwargs: dict[str, Any] = {"split": split} if name == "stl10" else {"train": split == "train"}
    try:
        data = OFFICIAL[name](root, **kwargs)
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


def download_official(name: str, folder: str) -> None:
    """Fetch, verify and unpack a dataset, if it is not there already.

    A download that was killed goes on where it ended (`fetch`), and what was unpacked in part is unpacked again, since
    its sums are wrong. Of several processes one fetches, and the others wait for it.
    """
    kind = OFFICIAL[name]
    with contextlib.suppress(OSError):  # said below, if something must be written there
        os.makedirs(folder, exist_ok=True)
    try:
        with locked(os.path.join(folder, f".{name}.lock")):
            try:
                kind(folder)
            except RuntimeError:  # a file is missing, or its sum is wrong
                archive = os.path.join(folder, kind.filename)
                fetch(kind.url, archive, kind.tgz_md5)
                extract_archive(archive, folder)
                kind(folder)
    except (RuntimeError, OSError, HTTPException) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # no matter of the network
        raise ConfigError(
            f"`root={folder}` (of {name}) lacks official files and fetching them failed ({error}): "
            f"run `{_download_command(name, folder)}` where there is a network."
        ) from error


def _download_command(name: str, root: str) -> str:
    kind = OFFICIAL[name].__name__
    return f"python -c \"from torchvision.datasets import {kind}; {kind}('{root}', download=True)\""
