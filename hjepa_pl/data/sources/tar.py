"""The samples of one tar shard, in its order, not yet decoded."""

import json
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from webdataset.gopen import gopen, set_options
from webdataset.tariterators import group_by_keys, tar_file_expander

from hjepa_pl.data.sources.decode import ImageFile
from hjepa_pl.data.sources.shards import image_suffix
from hjepa_pl.types import ConfigError

_FAULTS = (OSError, tarfile.TarError, EOFError, ValueError, zlib.error)


class Sample(NamedTuple):
    """One image of a shard, not yet decoded."""

    path: str
    """Its shard and key, as `shard.tar/key`."""
    content: bytes
    label: int
    """-1 where there is none."""

    def open(self) -> ImageFile:
        """Return the image; `OSError` if it is none."""
        return ImageFile(self.content)


def read_shard(shard: str) -> Iterator[Sample]:
    """Yield the images of a shard in its order; a shard that breaks off ends with a sample that cannot be decoded.

    Raises:
        ConfigError: It cannot be opened, or is not a tar.
    """
    members = 0
    try:
        for sample in _members(shard):
            members += 1
            suffix = image_suffix(sample)
            if suffix is not None:
                yield Sample(f"{shard}/{sample['__key__']}", sample[suffix], _label(sample))
    except _FAULTS as error:
        reason = str(error.args[0] if error.args else error).split(" @ ")[0]
        if not members:
            raise ConfigError(
                f"the shard {shard} cannot be read as a tar ({reason}): replace it, or leave it out of datasets.root."
            ) from None
        yield Sample(f"{shard} (breaks off: {reason})", b"", -1)


def _members(shard: str) -> Iterator[dict[str, Any]]:
    """Yield the samples of a shard as mappings of suffix to bytes, and close it."""
    stream = gopen(shard)
    # A command's status is asked for when all is read: before, it would come sooner or later, as time has it.
    set_options(stream, ignore_errors=True)
    try:
        yield from group_by_keys(tar_file_expander(iter([{"url": shard, "stream": stream}])))
        while stream.read(2**20):  # so that a command is heard out
            pass
    finally:
        stream.close()
    if getattr(stream, "status", None) not in (None, *getattr(stream, "ignore_status", ())):
        raise OSError(f"the command that reads it ended with status {stream.status}")


def _label(sample: dict[str, Any]) -> int:
    """Return the whole number in `.cls`, or under `label` in `.json`; -1 if there is none."""
    by_kind = {key.rsplit(".", 1)[-1]: value for key, value in sample.items()}
    try:
        return int(by_kind["cls"] if "cls" in by_kind else json.loads(by_kind["json"])["label"])
    except (KeyError, TypeError, ValueError):
        return -1
