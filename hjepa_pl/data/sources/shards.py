"""Sets of tar shards in the WebDataset layout: their paths, and their number of samples."""

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TypeGuard

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from webdataset import shardlists, tariterators

from hjepa_pl.data.sources.decode import extensions
from hjepa_pl.data.sources.images import Images
from hjepa_pl.types import ConfigError

SHUFFLE_BUFFER = 1000
_META = re.compile(r"__[^/]*__($|/)")  # members that the reader skips
_UNKNOWN = 2**62
_LOGGED = 100  # fewer shards are counted without a line in the log


class ShardImages:
    """Images in tar shards, which are read from front to back: none has an index.

    Args:
        shards: Paths, URLs or `pipe:` commands.
        samples: Number of images in all shards; None if unknown.
        shuffle_buffer: Size, in samples, of each worker's shuffle buffer.
    """

    in_memory, streamed = False, True

    def __init__(self, shards: Sequence[str], samples: int | None, shuffle_buffer: int = SHUFFLE_BUFFER) -> None:
        self.shards = list(shards)
        self.samples = samples
        self.shuffle_buffer = shuffle_buffer

    def __len__(self) -> int:
        """Return the number of samples; an unknown number counts as more than can be drawn."""
        return _UNKNOWN if self.samples is None else self.samples


def is_streamed(images: Images) -> TypeGuard[ShardImages]:
    """Return whether a set is a stream of shards (and tell the type checker)."""
    return images.streamed


def open_shards(root: str, samples: int | None = None, shuffle_buffer: int | None = None) -> ShardImages:
    """Find the shards of a dataset and their number of samples, without reading an image.

    Args:
        root: See `list_shards`.
        samples: Number of images in all shards; None counts them, if all are local files.
        shuffle_buffer: Size, in samples, of each worker's shuffle buffer; None is `SHUFFLE_BUFFER`.

    Raises:
        ConfigError: If there is no shard or no image, or if a local shard is missing or no tar.
    """
    shards = list_shards(root)
    local = [path for path in map(local_path, shards) if path is not None]
    _check_local(root, local)
    if samples is None and len(local) == len(shards):
        samples = count_samples(local)
        if samples == 0:
            raise ConfigError(f"no shard of {root} holds an image, such as KEY.jpg (dataset webdataset).")
    return ShardImages(shards, samples, shuffle_buffer or SHUFFLE_BUFFER)


def list_shards(root: str) -> list[str]:
    """Return the shards of a path, folder, glob, brace pattern, URL or `pipe:` command, in order."""
    try:
        names = shardlists.expand_urls(root)
    except (AssertionError, ValueError) as error:  # an unset ${VARIABLE}; braces that do not match
        raise ConfigError(f"invalid `datasets.root={root}`: cannot be expanded ({error}).") from None
    found: list[str] = []
    for name in names:
        path = local_path(name)
        if path is not None and os.path.isdir(path):
            found += sorted(glob.glob(os.path.join(glob.escape(path), "*.tar")))
        elif path is not None and glob.has_magic(path) and not os.path.exists(path):
            found += sorted(glob.glob(path))
        else:
            found.append(name if path is None else path)
    if not found:
        raise ConfigError(
            f"invalid `datasets.root={root}`: there is no such shard; set it to a path, folder, glob, {{000..099}} "
            "pattern, URL or pipe:COMMAND of tar files. `hjepa shards` makes them from a folder (dataset webdataset)."
        )
    return found


def local_path(shard: str) -> str | None:
    """Return the path of a shard that is a local file, None for others."""
    if shard.startswith("file:"):
        return re.sub("^file:(//)?", "", shard)
    return None if shard.startswith("pipe:") or "://" in shard else os.path.expanduser(shard)


def _check_local(root: str, paths: Sequence[str]) -> None:
    """Reject local shards that do not exist or are no tars."""
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise ConfigError(
            f"{len(missing)} of the {len(paths)} shards of {root} do not exist, the first is {missing[0]}; correct "
            "datasets.root (dataset webdataset)."
        )
    for path in paths:
        try:
            tarfile.open(path).close()
        except (tarfile.TarError, OSError, EOFError) as error:
            reason = str(error).splitlines()[0].rstrip(":")  # the other lines are of each decompressor
            raise ConfigError(
                f"the shard {path} cannot be read as a tar ({reason}); replace it, or remove it from datasets.root."
            ) from None


def count_samples(paths: Sequence[str]) -> int:
    """Return the number of images in local shards: from the list that `hjepa shards` wrote, or from their headers."""
    known: dict[str, dict[str, dict[str, int]]] = {}
    counts, unlisted = 0, []
    for path in paths:
        info = info_path(path)
        if info not in known:
            known[info] = _read_info(info)
        entry = known[info].get(os.path.basename(path))
        if entry is None or entry.get("bytes") != os.path.getsize(path):
            unlisted.append(path)
        else:
            counts += entry["samples"]
    if len(unlisted) >= _LOGGED:
        rank_zero_info(
            f"webdataset: counting the samples of {len(unlisted)} shards (set datasets.samples to skip this)."
        )
    return counts + sum(_count(path) for path in unlisted)


def info_path(shard: str) -> str:
    """Return the file that lists a shard: train.json for train-000012.tar in the same folder."""
    folder, name = os.path.split(shard)
    return os.path.join(folder, (re.sub(r"[-_.]*\d*\.tar$", "", name) or "shards") + ".json")


def _read_info(path: str) -> dict[str, dict[str, int]]:
    """Return the numbers of samples and bytes of each shard by file name; empty without a list."""
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file)["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _count(path: str) -> int:
    """Count the samples of a shard as its reader does: adjacent members with one key, one of them an image."""
    try:
        with tarfile.open(path) as tar:
            members = (tariterators.base_plus_ext(m.name) for m in tar if m.isreg() and not _META.match(m.name))
            groups = groupby((m for m in members if m[0] is not None), key=lambda m: m[0])
            return sum(image_suffix(suffix.lower() for _, suffix in group) is not None for _, group in groups)
    except (tarfile.TarError, OSError, EOFError):
        return 0  # truncated: reported when it is read


def image_suffix(suffixes: Iterable[str]) -> str | None:
    """Return the first of a sample's suffixes that is an image's, None without one."""
    return next((s for s in suffixes if "." + s.rsplit(".", 1)[-1] in extensions()), None)
