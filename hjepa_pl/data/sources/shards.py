"""Sets that are tar shards in the WebDataset layout: which shards there are, and how many samples they hold."""

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterable, Sequence, Sized
from itertools import groupby

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from webdataset import shardlists, tariterators

from hjepa_pl.data.sources.file_index import extensions
from hjepa_pl.types import ConfigError

_META = re.compile(r"__[^/]*__($|/)")  # what the reader passes over
_MANY = 2**62
SHUFFLE_BUFFER = 1000
_SHOWN = 100  # shards from which on counting by their headers is worth a line in the log


class ShardImages:
    """Images in tar shards, which are read from front to back: there is no image by its index.

    Attributes:
        shards: Paths, URLs or `pipe:` commands.
        samples: Images in all shards; None if that is not known.
        shuffle_buffer: Samples of the buffer that each worker shuffles through.
    """

    def __init__(self, shards: Sequence[str], samples: int | None, shuffle_buffer: int = SHUFFLE_BUFFER) -> None:
        self.shards = list(shards)
        self.samples = samples
        self.shuffle_buffer = shuffle_buffer

    def __len__(self) -> int:
        """Return the number of samples; one that is not known counts as more than can be drawn."""
        return _MANY if self.samples is None else self.samples


def open_shards(root: str, samples: int | None = None, shuffle_buffer: int | None = None) -> ShardImages:
    """Find the shards of a dataset and learn its size, without reading an image.

    Args:
        root: What `list_shards` takes.
        samples: Images in all shards; None counts them, if all are local files.
        shuffle_buffer: Samples of the buffer that each worker shuffles through; None is `SHUFFLE_BUFFER`.

    Raises:
        ConfigError: There is no shard, or a local one is missing, not a tar, or without images.
    """
    shards = list_shards(root)
    local = [path for path in map(local_path, shards) if path is not None]
    _check_local(root, local)
    if samples is None and len(local) == len(shards):
        samples = count_samples(local)
        if samples == 0:
            raise ConfigError(f"`root={root}` (of webdataset): no shard holds an image, as KEY.jpg or the like.")
    return ShardImages(shards, samples, shuffle_buffer or SHUFFLE_BUFFER)


def list_shards(root: str) -> list[str]:
    """Return the shards that a path, folder, glob, brace pattern, URL or `pipe:` command stands for, in order."""
    try:
        names = shardlists.expand_urls(root)
    except (AssertionError, ValueError) as error:  # an unset ${VARIABLE}; braces that do not match
        raise ConfigError(f"`root={root}` (of webdataset) cannot be expanded: {error}.") from None
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
            f"`root={root}` (of webdataset) leads to no shard: give tar files as a path, a folder, a glob, "
            "{000..099}, a URL or pipe:COMMAND; `hjepa shards` makes them from a folder."
        )
    return found


def local_path(shard: str) -> str | None:
    """Return the path of a shard that is a file of this machine, else None."""
    if shard.startswith("file:"):
        return re.sub("^file:(//)?", "", shard)
    return None if shard.startswith("pipe:") or "://" in shard else os.path.expanduser(shard)


def _check_local(root: str, paths: Sequence[str]) -> None:
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise ConfigError(
            f"`root={root}` (of webdataset) names {len(paths)} shards and {len(missing)} of them are not there, the "
            f"first is {missing[0]}: mend the pattern."
        )
    for path in paths:
        try:
            tarfile.open(path).close()
        except (tarfile.TarError, OSError, EOFError) as error:
            reason = str(error).splitlines()[0].rstrip(":")  # then comes what each decompressor says
            raise ConfigError(
                f"`root={root}` (of webdataset): the shard {path} cannot be read as a tar ({reason}): replace it, or "
                "leave it out of the pattern."
            ) from None


def count_samples(paths: Sequence[str]) -> int:
    """Return the number of images in local shards: from the list that `hjepa shards` wrote, else from their headers."""
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
    if len(unlisted) >= _SHOWN:
        rank_zero_info(f"webdataset: counting the samples of {len(unlisted)} shards (`samples` would save that).")
    return counts + sum(_count(path) for path in unlisted)


def info_path(shard: str) -> str:
    """Return the file beside a shard that lists it: train-000012.tar is in train.json."""
    folder, name = os.path.split(shard)
    return os.path.join(folder, (re.sub(r"[-_.]*\d*\.tar$", "", name) or "shards") + ".json")


def _read_info(path: str) -> dict[str, dict[str, int]]:
    """Return samples and bytes of each shard by file name; nothing if there is no such list."""
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file)["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _count(path: str) -> int:
    """Count the samples of a shard as its reader will: neighbouring members of one key, one of them an image."""
    try:
        with tarfile.open(path) as tar:
            members = (tariterators.base_plus_ext(m.name) for m in tar if m.isreg() and not _META.match(m.name))
            groups = groupby((m for m in members if m[0] is not None), key=lambda m: m[0])
            return sum(image_suffix(suffix.lower() for _, suffix in group) is not None for _, group in groups)
    except (tarfile.TarError, OSError, EOFError):
        return 0  # cut off: what the stream makes of it is told when it is read


def image_suffix(suffixes: Iterable[str]) -> str | None:
    """Return the first of a sample's suffixes that is an image's."""
    return next((s for s in suffixes if "." + s.rsplit(".", 1)[-1] in extensions()), None)


def known_sizes(sets: Sequence[Sized], epoch_size: int | None, sampling: str) -> list[int]:
    """Return the size of each set; refuse one that is not known where it is needed.

    Args:
        sets: The mixture.
        epoch_size: As given.
        sampling: How the shares of the sets are found.
    """
    if any(isinstance(s, ShardImages) and s.samples is None for s in sets) and (not epoch_size or sampling == "concat"):
        needed = "sampling=concat shares by size" if epoch_size else "epoch_size is not given"
        raise ConfigError(
            f"`datasets.samples=None` (of webdataset) is refused, the shards are not all local files and {needed}: "
            f"give datasets.samples, the images in all shards{'' if epoch_size else ', or epoch_size'}."
        )
    return [len(s) for s in sets]
