"""Trees of image files: who is in them, and small ones read into memory."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image
from torch import Tensor

from hjepa_pl.data.storage import ArrayImages, FileImages, Images
from hjepa_pl.types import ConfigError

SPLITS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test", "val", "validation", "valid")}
BROKEN_SHARE = 0.1
_STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that Pillow names but does not decode by itself
_SAMPLE, _SMALL_SIDE, _MEMORY = 64, 96, 2 * 1024**3


@cache
def extensions() -> frozenset[str]:
    """Return the file endings (lower case, with the dot) that Pillow reads."""
    known = Image.registered_extensions()
    return frozenset(ext for ext, kind in known.items() if kind in Image.OPEN and kind not in _STUBS)


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
    has_splits = any(os.path.isdir(os.path.join(root, s)) for names in SPLITS.values() for s in names)
    if must or has_splits or split != "train":
        raise ConfigError(f"`split={split}` (of {name}) needs the folder {os.path.join(root, split)}: make it.")
    return root


def walk(folder: str) -> list[str]:
    """Return all image files below a folder, sorted; links are followed, a ring of links only once."""
    found: list[str] = []
    seen: set[str] = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen and os.path.islink(path):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        known = extensions()
        images = (f for f in files if not f.startswith(".") and os.path.splitext(f)[1].lower() in known)
        found.extend(os.path.join(path, f) for f in images)
    return sorted(found)


def scan(name: str, base: str, classes: list[str] | None = None) -> FileImages:
    """List the images of a folder; the label is the first folder below it, -1 for files that lie directly in it.

    Args:
        name: Dataset, for the message.
        base: Folder of the split.
        classes: Names of the only class folders to read, in the order of their labels; None takes all there are.
    """
    if classes is None:
        paths = walk(base)
        depth = len(base.rstrip(os.sep)) + 1
        heads = [p[depth:].split(os.sep, 1) for p in paths]
        classes = sorted({h[0] for h in heads if len(h) == 2})
        place = {c: i for i, c in enumerate(classes)}
        labels = [place[h[0]] if len(h) == 2 else -1 for h in heads]
    else:
        lists = [walk(os.path.join(base, c)) for c in classes]
        paths = [p for part in lists for p in part]
        labels = [i for i, part in enumerate(lists) for _ in part]
    if not paths:
        raise ConfigError(
            f"`root` (of {name}) leads to {base}, which holds no image: point it at a folder with images."
        )
    return FileImages(paths, torch.tensor(labels), classes)


def load_folder(name: str, base: str, classes: list[str] | None = None) -> Images:
    """Return a folder's images, in memory if they are small and of one size."""
    files = scan(name, base, classes)
    return (_read_all(name, files) if _is_small(files) else None) or files


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


def _read_all(name: str, files: FileImages) -> ArrayImages | None:
    """Decode every file; None if they turn out to be of several sizes."""

    def read(chunk: range) -> list[Tensor | str]:
        results: list[Tensor | str] = []
        for i in chunk:
            try:
                results.append(files.read(i, None))
            except OSError:
                results.append(files.path(i))
        return results

    chunks = [range(i, min(i + 256, len(files))) for i in range(0, len(files), 256)]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        rows = [row for part in pool.map(read, chunks) for row in part]
    good = [i for i, row in enumerate(rows) if isinstance(row, Tensor)]
    broken = [row for row in rows if isinstance(row, str)]
    if broken:
        check_broken(name, broken, len(files))
        for path in broken:
            rank_zero_warn(f"{name}: {path} cannot be decoded and is left out.")
    images = [row for row in rows if isinstance(row, Tensor)]
    if len({tuple(image.shape[1:]) for image in images}) != 1:
        return None
    channels = max(image.shape[0] for image in images)
    stacked = torch.stack([image.expand(channels, -1, -1) for image in images])
    return ArrayImages(stacked, files.labels[torch.tensor(good)], files.classes)


def check_broken(name: str, broken: list[str], tried: int) -> None:
    """Stop when more than a tenth of the files that were tried are broken."""
    if len(broken) > BROKEN_SHARE * tried:
        shown = ", ".join(broken[:20]) + (", ..." if len(broken) > 20 else "")
        raise ConfigError(
            f"`{name}`: {len(broken)} of {tried} files cannot be decoded, more than {BROKEN_SHARE:.0%}: "
            f"mend or remove {shown}."
        )
