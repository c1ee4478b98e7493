"""Datasets that are trees of folders: the folder of a split, and the class folders below it."""

import os
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from timm.data import ImageNetInfo

from hjepa_pl.data.sources.images import check_split
from hjepa_pl.types import ConfigError

SPLITS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test", "val", "validation", "valid")}
_NEEDS_SPLITS: Mapping[str, bool] = {"imagenet100": False, "imagenet": True, "folder": False}
"""Whether each split must have a folder of its own; otherwise `root` itself may be `train`."""
TREES = tuple(_NEEDS_SPLITS)
"""Names of these datasets."""


class Tree(NamedTuple):
    """What is read of a folder. Equal trees hold the same images with the same labels."""

    base: str
    """Folder of the split."""
    folders: tuple[str, ...] | None = None
    """Class folders to read, in the order of their labels; None reads all."""
    classes: tuple[str, ...] | None = None
    """Names of the classes; None takes those of the folders."""


def find_tree(name: str, root: str, split: str, classes: str | None = None) -> Tree:
    """Return the tree of a dataset of `TREES`.

    Args:
        name: The dataset.
        root: Its folder.
        split: `train`, `val` or `test`.
        classes: Text file with one class folder a line (see `read_classes`). None reads all class folders, or the
            usual hundred of `imagenet100`.

    Raises:
        ConfigError: If the split, the folder, a class folder or the text file does not exist.
    """
    base = split_folder(name, root, split, required=_NEEDS_SPLITS[name])
    if classes is not None:
        return _listed(name, base, os.path.expanduser(classes))
    if name != "imagenet100":
        return Tree(base)
    usual = imagenet100_classes()
    missing = _missing(base, usual)
    if missing:
        raise ConfigError(
            f"{base} lacks {len(missing)} of the 100 class folders of imagenet100, the first is {missing[0]}; set root "
            "to the ImageNet folder with train/<wnid> and val/<wnid>, or set name to folder."
        )
    return Tree(base, tuple(usual), imagenet100_names())


def split_folder(name: str, root: str, split: str, *, required: bool) -> str:
    """Return the folder of a split.

    Args:
        name: Dataset, for messages.
        root: Its folder.
        split: `train`, `val` or `test` (which may be the folder `val`).
        required: Whether the split needs a folder of its own; otherwise `root` itself may be `train`.

    Raises:
        ConfigError: If there is none.
    """
    check_split(name, split, tuple(SPLITS))
    if not os.path.isdir(root):
        raise ConfigError(
            f"{root} is not a folder; set root to the folder that holds the images"
            f"{' as train/<class> and val/<class>' if required else ''} (dataset {name})."
        )
    for candidate in SPLITS[split]:
        if os.path.isdir(os.path.join(root, candidate)):
            return os.path.join(root, candidate)
    if required or own_splits(root) or split != "train":
        raise ConfigError(
            f"there is no folder {os.path.join(root, split)} for the split {split}; make it"
            f"{', or set holdout for a probe' if name == 'folder' and split == 'test' else ''} (dataset {name})."
        )
    return root


def own_splits(root: str) -> list[str]:
    """Return the names of the split folders in a folder."""
    names = dict.fromkeys(n for names in SPLITS.values() for n in names)
    return [n for n in names if os.path.isdir(os.path.join(root, n))]


def imagenet100_classes() -> list[str]:
    """Return the usual hundred ImageNet classes (CMC's list), in the order of their labels."""
    return files("hjepa_pl.data.sources").joinpath("imagenet100.txt").read_text().split()


@cache
def imagenet100_names() -> tuple[str, ...]:
    """Return the names of these classes: the first of timm's names for each."""
    info = ImageNetInfo()
    return tuple(info.label_name_to_description(wnid).split(",")[0] for wnid in imagenet100_classes())


def read_classes(path: str) -> tuple[list[str], list[str]]:
    """Read a class list.

    Args:
        path: Text file with one class a line: its folder and, after a tab or (without one) after the first blank, its
            name, which is optional. A folder whose name has a blank needs a tab after it. Empty lines are skipped.

    Returns:
        Folders and names, both in the order of the file.

    Raises:
        ConfigError: If the file cannot be read, names no class, or names one twice.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip(" \r\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"invalid `classes={path}`: cannot be read as a text file ({error}).") from None
    columns = [line.split("\t" if "\t" in line else None, 1) for line in lines if line.strip()]
    folders = [c[0].strip() for c in columns]
    if not folders:
        raise ConfigError(f"invalid `classes={path}`: names no class; write one class folder a line.")
    repeated = next((f for f, count in Counter(folders).items() if count > 1), None)
    if repeated is not None:
        raise ConfigError(f"invalid `classes={path}`: names {repeated} twice; remove one of the lines.")
    return folders, [c[-1].strip() or folder for folder, c in zip(folders, columns, strict=True)]


def _listed(name: str, base: str, path: str) -> Tree:
    folders, names = read_classes(path)
    missing = _missing(base, folders)
    if missing:
        raise ConfigError(
            f"invalid `classes={path}`: names {missing[0]}, which is no folder in {base}"
            f"{f', and {len(missing) - 1} more' if len(missing) > 1 else ''}; correct the list (dataset {name})."
        )
    return Tree(base, tuple(folders), tuple(names))


def _missing(base: str, folders: list[str]) -> list[str]:
    """Return those that are no folders below `base`."""

    def exists(folder: str) -> bool:
        outside = os.path.isabs(folder) or ".." in folder.split(os.sep)
        return not outside and os.path.isdir(os.path.join(base, folder))

    return [f for f in folders if not exists(f)]
