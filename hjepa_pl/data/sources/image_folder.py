"""Trees of image files as datasets; small ones are read into memory."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hjepa_pl.data.sources.bad_files import BadFile, BadFiles, reason
from hjepa_pl.data.sources.class_folders import Tree
from hjepa_pl.data.sources.file_index import list_images
from hjepa_pl.data.sources.images import ArrayImages, FileImages, Images
from hjepa_pl.data.sources.progress_bar import waiting
from hjepa_pl.types import ConfigError

_SAMPLE, _SMALL_SIDE, _MEMORY = 64, 96, 2 * 1024**3


class Reading(NamedTuple):
    """What a run brings along for the reading of folders."""

    bad: BadFiles
    index_cache: str | None = None
    """Folder where listings are kept."""


def scan(name: str, tree: Tree, index_cache: str | None = None) -> FileImages:
    """List the images of a tree; the label is the first folder below it, -1 for files that lie directly in it."""
    listing = list_images(tree.base, tree.folders, index_cache)
    if not len(listing.paths):
        raise ConfigError(
            f"`root` (of {name}) leads to {tree.base}, which holds no image: point it at a folder with images."
        )
    paths = np.char.add(os.fsencode(os.path.join(tree.base, "")), listing.paths)
    classes = [os.fsdecode(c) for c in listing.classes.tolist()] if tree.classes is None else tree.classes
    return FileImages(paths, torch.from_numpy(listing.labels), classes)


def load_folder(name: str, tree: Tree, reading: Reading) -> Images:
    """Return a tree's images, in memory if they are small and of one size."""
    files = scan(name, tree, reading.index_cache)
    return (_read_all(name, files, reading.bad) if _is_small(files) else None) or files


def _is_small(files: FileImages) -> bool:
    """Judge from some files' headers whether all may be small and equal, and fit into memory."""
    step = max(1, len(files) // _SAMPLE)
    sizes = set()
    for i in list(range(min(_SAMPLE, len(files)))) + list(range(0, len(files), step)):
        try:
            with Image.open(files.path(i)) as image:
                sizes.add(image.size)
        except Exception:  # broken files are dealt with when they are read
            continue
    if len(sizes) != 1:
        return False
    width, height = sizes.pop()
    return max(width, height) <= _SMALL_SIDE and len(files) * 3 * width * height <= _MEMORY


def _read_all(name: str, files: FileImages, bad: BadFiles) -> ArrayImages | None:
    """Decode every file, but for the broken ones; None if they turn out to be of several sizes."""

    def read(chunk: range) -> list[Tensor | BadFile]:
        results: list[Tensor | BadFile] = []
        for i in chunk:
            try:
                results.append(files.read(i, None))
            except OSError as error:
                results.append(BadFile(name, files.path(i), reason(error)))
        return results

    chunks = [range(i, min(i + 256, len(files))) for i in range(0, len(files), 256)]
    rows: list[Tensor | BadFile] = []
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool, waiting(f"Reading {name}", len(files)) as advance:
        for part in pool.map(read, chunks):
            rows.extend(part)
            advance(len(part))
    good = [i for i, row in enumerate(rows) if isinstance(row, Tensor)]
    broken = [row for row in rows if isinstance(row, BadFile)]
    bad.add(broken, "is left out")
    bad.check(name, {file.path for file in broken}, len(files), len(files))
    images = [row for row in rows if isinstance(row, Tensor)]
    if len({tuple(image.shape[1:]) for image in images}) != 1:
        return None
    channels = max(image.shape[0] for image in images)
    stacked = torch.stack([image.expand(channels, -1, -1) for image in images])
    return ArrayImages(stacked, files.labels[torch.tensor(good)], files.classes)
