"""Which images a tree of folders holds: found by walking it, and kept in a file until a folder of it changes."""

import contextlib
import hashlib
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from hjepa_pl.data.sources.progress_bar import waiting
from hjepa_pl.types import ConfigError

INDEX_CACHE = "results/.index"
_STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that Pillow names but does not decode by itself
_KEPT_FROM = 10_000
"""Images from which on a listing is kept: fewer are found in less than a tenth of a second."""
_SETTLED = 2 * 10**9
"""Nanoseconds that a folder must have been left alone: a later change may still get the same time stamp."""


class Listing(NamedTuple):
    """The images below a folder, sorted by path within each class."""

    paths: np.ndarray
    """(N,) bytes, relative to the folder."""
    labels: np.ndarray
    """(N,) int64, -1 for files that lie directly in the folder."""
    classes: np.ndarray
    """(n,) bytes: the class folders, in the order of the labels."""
    folders: np.ndarray
    """(M,) bytes: every folder that was looked into, relative."""
    changed: np.ndarray
    """(M,) int64: when each of them last changed, in nanoseconds."""


@cache
def extensions() -> frozenset[str]:
    """Return the file endings (lower case, with the dot) that Pillow reads."""
    known = Image.registered_extensions()
    return frozenset(ext for ext, kind in known.items() if kind in Image.OPEN and kind not in _STUBS)


def list_images(base: str, classes: Sequence[str] | None = None, cache_folder: str | None = None) -> Listing:
    """Return the images below a folder.

    Args:
        base: The folder.
        classes: Names of the only class folders to look into, in the order of their labels; None takes all there are.
        cache_folder: Where listings are kept, if they are. One that is kept is taken while no folder has changed, which
            costs a look at each folder, not at each file; a damaged one is made anew.

    Raises:
        ConfigError: A folder may not be read.
    """
    kept = None if cache_folder is None else os.path.join(cache_folder, f"{_key(base, classes)}.npz")
    listing = None if kept is None else _load(kept, base)
    if listing is None:
        start = time.time_ns()
        listing = _scan(base, classes)
        if kept is not None and len(listing.paths) >= _KEPT_FROM and listing.changed.max() < start - _SETTLED:
            with contextlib.suppress(OSError):  # it is a cache: where it cannot be written, the next run walks again
                _save(kept, listing)
    return listing


def _scan(base: str, classes: Sequence[str] | None) -> Listing:
    folders: dict[str, int] = {}
    with waiting(f"Listing {base}") as advance:
        if classes is None:
            paths = _walk(base, folders, advance)
            depth = len(os.path.join(base, ""))
            heads = [p[depth:].split(os.sep, 1) for p in paths]
            classes = sorted({h[0] for h in heads if len(h) == 2})
            place = {c: i for i, c in enumerate(classes)}
            labels = [place[h[0]] if len(h) == 2 else -1 for h in heads]
        else:
            lists = [_walk(os.path.join(base, c), folders, advance) for c in classes]
            paths = [p for part in lists for p in part]
            labels = [i for i, part in enumerate(lists) for _ in part]
    return Listing(
        _relative(paths, base),
        np.array(labels, dtype=np.int64),
        np.array([os.fsencode(c) for c in classes], dtype=np.bytes_),
        _relative(list(folders), base),
        np.array(list(folders.values()), dtype=np.int64),
    )


def _relative(paths: list[str], base: str) -> np.ndarray:
    start = len(os.path.join(base, ""))
    return np.array([os.fsencode(p[start:]) for p in paths], dtype=np.bytes_)


def _walk(top: str, folders: dict[str, int], advance: Callable[[int], None]) -> list[str]:
    """Return all image files below a folder, sorted, and note each folder's time in `folders`.

    Links are followed, a ring of links only once.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting_for, known = [top], extensions()
    while waiting_for:
        path = waiting_for.pop()
        try:
            # Before it is listed, so that what changes in between is seen the next time.
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen and os.path.islink(path):
                continue
            with os.scandir(path) as entries:
                here = [e for e in entries if not e.name.startswith(".")]
        except PermissionError:
            raise ConfigError(f"the folder {path} may not be read: change its permissions, or move it away.") from None
        except FileNotFoundError:  # it has just gone
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[path] = status.st_mtime_ns
        below = {e.path for e in here if _is_folder(e)}
        images = [e.path for e in here if e.path not in below and os.path.splitext(e.name)[1].lower() in known]
        found.extend(images)
        waiting_for.extend(sorted(below, reverse=True))
        advance(len(images))
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _key(base: str, classes: Sequence[str] | None) -> str:
    """Return the name under which a listing is kept: a hash of all that it depends on, but for the tree itself."""
    parts = ["1", os.path.abspath(base), repr(None if classes is None else list(classes)), *sorted(extensions())]
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:24]


def _load(path: str, base: str) -> Listing | None:
    """Return a kept listing; None if there is none, if it is damaged, or if a folder has changed."""
    try:
        with np.load(path, allow_pickle=False) as arrays:  # a zip archive: each part is checked by its sum
            listing = Listing(*(arrays[name] for name in Listing._fields))
        for folder, changed in zip(listing.folders.tolist(), listing.changed.tolist(), strict=True):
            if os.stat(os.path.join(base, os.fsdecode(folder))).st_mtime_ns != changed:
                return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return listing


def _save(path: str, listing: Listing) -> None:
    """Write a listing in one piece, so that other processes find the old one, the new one, or none."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            np.savez(file, **listing._asdict())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise
