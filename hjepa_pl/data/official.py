"""The datasets whose official files torchvision fetches, verifies and reads."""

import contextlib
import os
from http.client import HTTPException
from typing import Any

import numpy as np
import torch
from torchvision import datasets as tv

from hjepa_pl.data.locks import locked
from hjepa_pl.data.storage import ArrayImages, check_split
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
    """Fetch and verify a dataset, if it is not there already.

    An archive that a killed download left is fetched again, since its sum is wrong. Of several processes one fetches,
    and the others wait for it.
    """
    with contextlib.suppress(OSError):  # torchvision says it if it must write there
        os.makedirs(folder, exist_ok=True)
    try:
        with locked(os.path.join(folder, f".{name}.lock")):
            OFFICIAL[name](folder, download=True)
    # A transfer that breaks off is an HTTPException.
    except (RuntimeError, OSError, HTTPException) as error:
        raise ConfigError(
            f"`root={folder}` (of {name}) lacks official files and fetching them failed ({error}): "
            f"run `{_download_command(name, folder)}` where there is a network."
        ) from error


def _download_command(name: str, root: str) -> str:
    kind = OFFICIAL[name].__name__
    return f"python -c \"from torchvision.datasets import {kind}; {kind}('{root}', download=True)\""
