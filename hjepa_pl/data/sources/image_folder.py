"""Trees of image files as datasets; small images are read into memory."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from hjepa_pl.data.sources.bad_files import BadFile, BadFiles, reason
from hjepa_pl.data.sources.class_folders import Tree
from hjepa_pl.data.sources.decode import extensions
from hjepa_pl.data.sources.images import ArrayImages, FileImages
from hjepa_pl.data.sources.progress_bar import progress_bar
from hjepa_pl.types import ConfigError

_SAMPLE = 64
"""Files at the beginning, and about as many evenly spaced ones, whose headers tell whether a set may be small."""
_MAX_SIDE, _MAX_BYTES = 96, 2 * 1024**3
"""Limits of sets that are read into memory: pixels of a side, bytes in all."""


class Listing(NamedTuple):
    """The images below a folder, sorted by path (within each class, if the classes are given)."""

    paths: list[str]
    labels: list[int]
    """-1 for files directly in the folder."""
    classes: list[str]
    """The class folders, in the order of the labels."""


def list_images(base: str, classes: Sequence[str] | None = None) -> Listing:
    """List the images below a folder; the label is the first folder below it.

    Args:
        base: The folder.
        classes: The only class folders to read, in the order of their labels; None reads all.

    Raises:
        ConfigError: If a folder cannot be read.
    """
    with progress_bar(f"Listing {base}") as advance:
        if classes is not None:
            lists = [_walk(os.path.join(base, c), advance) for c in classes]
            labels = [i for i, paths in enumerate(lists) for _ in paths]
            return Listing([p for paths in lists for p in paths], labels, list(classes))
        paths = _walk(base, advance)
    depth = len(os.path.join(base, ""))
    folders = [p[depth:].partition(os.sep) for p in paths]
    number = {c: i for i, c in enumerate(sorted({first for first, sep, _ in folders if sep}))}
    return Listing(paths, [number[first] if sep else -1 for first, sep, _ in folders], list(number))


def _walk(top: str, advance: Callable[[int], None]) -> list[str]:
    """Return the paths of all image files below a folder, sorted, but for hidden ones. Links are followed."""
    known, found, seen = extensions(), list[str](), set[tuple[int, int]]()
    for folder, folders, names in os.walk(top, onerror=_reject_folder, followlinks=True):
        status = os.stat(folder)
        if os.path.islink(folder) and (status.st_dev, status.st_ino) in seen:
            folders.clear()  # a link to a folder above it, or to one that was listed
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        images = [n for n in names if not n.startswith(".") and os.path.splitext(n)[1].lower() in known]
        found += [os.path.join(folder, n) for n in images]
        advance(len(images))
    return sorted(found)


def _reject_folder(error: OSError) -> None:
    if isinstance(error, PermissionError):
        raise ConfigError(f"the folder {error.filename} cannot be read; change its permissions, or move it away.")
    if not isinstance(error, FileNotFoundError):  # a folder that has just been removed is skipped
        raise error


def scan_folder(name: str, tree: Tree) -> FileImages:
    """List the images of a tree as a set.

    Args:
        name: Dataset, for messages.
        tree: What to read.

    Raises:
        ConfigError: If there is no image.
    """
    listing = list_images(tree.base, tree.folders)
    if not listing.paths:
        raise ConfigError(f"{tree.base} holds no image; set root to a folder with images (dataset {name}).")
    return FileImages(listing.paths, torch.tensor(listing.labels), tree.classes or listing.classes)


def load_folder(name: str, tree: Tree, bad: BadFiles) -> ArrayImages | FileImages:
    """Return a tree's images, in memory if they are small and of one size.

    Args:
        name: Dataset, for messages.
        tree: What to read.
        bad: Takes the files that cannot be decoded, which are left out.
    """
    files = scan_folder(name, tree)
    return (_read_all(name, files, bad) if _may_be_small(files) else None) or files


def _may_be_small(files: FileImages) -> bool:
    """Return whether the headers of some files are of one small size, and all of that size fit in memory."""
    step = max(1, len(files) // _SAMPLE)
    sizes = set()
    for i in [*range(min(_SAMPLE, len(files))), *range(0, len(files), step)]:
        try:
            with Image.open(files.path(i)) as image:
                sizes.add(image.size)
        except Exception:  # reported when the files are read
            continue
    if len(sizes) != 1:
        return False
    width, height = sizes.pop()
    return max(width, height) <= _MAX_SIDE and len(files) * 3 * width * height <= _MAX_BYTES


def _read_all(name: str, files: FileImages, bad: BadFiles) -> ArrayImages | None:
    """Decode every file and leave out the bad ones; None if the images are of several sizes."""

    def read(chunk: range) -> list[Tensor | BadFile]:
        return [_read(name, files, i) for i in chunk]

    chunks = [range(i, min(i + 256, len(files))) for i in range(0, len(files), 256)]
    rows: list[Tensor | BadFile] = []
    pool, bar = ThreadPoolExecutor(min(16, os.cpu_count() or 1)), progress_bar(f"Reading {name}", len(files))
    with pool, bar as advance:
        for part in pool.map(read, chunks):
            rows.extend(part)
            advance(len(part))
    broken = [row for row in rows if isinstance(row, BadFile)]
    bad.add(broken, "is left out")
    bad.check(name, {file.path for file in broken}, len(files), len(files))
    good = [i for i, row in enumerate(rows) if isinstance(row, Tensor)]
    images = [row for row in rows if isinstance(row, Tensor)]
    if len({tuple(image.shape[1:]) for image in images}) != 1:
        return None
    channels = max(image.shape[0] for image in images)
    stacked = torch.stack([image.expand(channels, -1, -1) for image in images])
    return ArrayImages(stacked, files.labels[torch.tensor(good)], files.classes)


def _read(name: str, files: FileImages, index: int) -> Tensor | BadFile:
    try:
        return files.read(index, None)
    except OSError as error:
        return BadFile(files.path(index), name, reason(error))
