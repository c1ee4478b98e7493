"""The datasets that are trees of folders: where their images lie, and which class folders count."""

import os
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from timm.data import ImageNetInfo

from hjepa_pl.types import ConfigError

SPLITS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test", "val", "validation", "valid")}
_NEEDS_SPLITS: Mapping[str, bool] = {"imagenet100": False, "imagenet": True, "folder": False}
"""Whether a split must have a folder of its own; otherwise `root` itself may serve as `train`."""
TREES = tuple(_NEEDS_SPLITS)
"""Names of these datasets."""


class Tree(NamedTuple):
    """What is read of a tree. Two that are equal hold the same images with the same labels."""

    base: str
    """Folder of the split."""
    folders: tuple[str, ...] | None = None
    """The only class folders below it, in the order of their labels; None takes all there are."""
    classes: tuple[str, ...] | None = None
    """Names of the classes, if they are not those of the folders."""


def find_tree(name: str, root: str, split: str, classes: str | None = None) -> Tree:
    """Return what is read of a dataset of `TREES`.

    Args:
        name: The dataset.
        root: Its folder.
        split: `train`, `val` or `test`.
        classes: File with a class folder a line; the usual hundred for `imagenet100`, all there are for others, if not
            given.
    """
    base = split_folder(name, root, split, must=_NEEDS_SPLITS[name])
    if classes is not None:
        return _listed(name, base, os.path.expanduser(classes))
    if name != "imagenet100":
        return Tree(base)
    usual = imagenet100_classes()
    missing = _missing(base, usual)
    if missing:
        raise ConfigError(
            f"`root={root}` (of imagenet100) lacks {len(missing)} of the 100 class folders in {base}, the first is "
            f"{missing[0]}: give the ImageNet folder with train/<wnid> and val/<wnid>, or use the name folder."
        )
    return Tree(base, tuple(usual), imagenet100_names())


def split_folder(name: str, root: str, split: str, *, must: bool) -> str:
    """Return the folder that holds a split.

    Args:
        name: Dataset, for the message.
        root: Its folder.
        split: `train`, `val` or `test` (`test` is content with `val`).
        must: Whether the split needs a folder of its own; otherwise `root` itself serves as `train`.
    """
    if split not in SPLITS:
        raise ConfigError(f"`split={split}` is not one of {name}'s: use {', '.join(SPLITS)}.")
    if not os.path.isdir(root):
        raise ConfigError(
            f"`root={root}` (of {name}) is not a folder: give the folder that holds the images"
            f"{' as train/<class> and val/<class>' if must else ''}."
        )
    for candidate in SPLITS[split]:
        if os.path.isdir(os.path.join(root, candidate)):
            return os.path.join(root, candidate)
    if must or own_splits(root) or split != "train":
        raise ConfigError(
            f"`split={split}` (of {name}) needs the folder {os.path.join(root, split)}: make it"
            f"{', or set holdout for a probe' if name == 'folder' and split == 'test' else ''}."
        )
    return root


def own_splits(root: str) -> list[str]:
    """Return the names of the split folders that a folder has."""
    names = dict.fromkeys(n for names in SPLITS.values() for n in names)
    return [n for n in names if os.path.isdir(os.path.join(root, n))]


def imagenet100_classes() -> list[str]:
    """Return the usual hundred ImageNet classes (CMC's list), in the order of their labels."""
    return files("hjepa_pl.data.sources").joinpath("imagenet100.txt").read_text().split()


@cache
def imagenet100_names() -> tuple[str, ...]:
    """Return what people call these hundred classes: the first of the names that timm lists for each."""
    info = ImageNetInfo()
    return tuple(info.label_name_to_description(wnid).split(",")[0] for wnid in imagenet100_classes())


def read_classes(path: str) -> tuple[list[str], list[str]]:
    """Read a class list.

    Args:
        path: Text file, one class a line: its folder and, after a tab or else after the first blank, its name if it has
            another. (So a folder with a blank in it needs a tab after it.) Empty lines do not count.

    Returns:
        Folders and names, both in the order of the file.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.strip(" \r\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`classes={path}` cannot be read as a text file: {error}.") from None
    columns = [line.split("\t" if "\t" in line else None, 1) for line in lines if line.strip()]
    folders = [c[0].strip() for c in columns]
    if not folders:
        raise ConfigError(f"`classes={path}` names no class: write a class folder on each line.")
    twice = next((f for f in folders if folders.count(f) > 1), None)
    if twice is not None:
        raise ConfigError(f"`classes={path}` names {twice} twice: remove one of the lines.")
    return folders, [c[-1].strip() or folder for folder, c in zip(folders, columns, strict=True)]


def _listed(name: str, base: str, path: str) -> Tree:
    folders, names = read_classes(path)
    missing = _missing(base, folders)
    if missing:
        raise ConfigError(
            f"`classes={path}` (of {name}) names {missing[0]}, which is no folder in {base}"
            f"{f', and {len(missing) - 1} more such' if len(missing) > 1 else ''}: correct the list."
        )
    return Tree(base, tuple(folders), tuple(names))


def _missing(base: str, folders: list[str]) -> list[str]:
    inside = (f for f in folders if not (os.path.isabs(f) or ".." in f.split(os.sep)))
    there = {f for f in inside if os.path.isdir(os.path.join(base, f))}
    return [f for f in folders if f not in there]
