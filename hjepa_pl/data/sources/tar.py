"""The images of one tar shard, in its order."""

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

_READ_ERRORS = (OSError, tarfile.TarError, EOFError, ValueError, zlib.error)


class Sample(NamedTuple):
    """One image of a shard, not decoded yet."""

    path: str
    """Its shard and key, as `shard.tar/key`."""
    content: bytes
    label: int
    """-1 without a label."""

    def open(self) -> ImageFile:
        """Return the image; `OSError` if the bytes are none."""
        return ImageFile(self.content)


def read_shard(shard: str) -> Iterator[Sample]:
    """Yield the images of a shard in its order; the last one of a truncated shard cannot be decoded.

    Args:
        shard: Path, URL or `pipe:` command.

    Raises:
        ConfigError: If it cannot be opened, or is no tar.
    """
    members = 0
    try:
        for sample in _members(shard):
            members += 1
            suffix = image_suffix(sample)
            if suffix is not None:
                yield Sample(f"{shard}/{sample['__key__']}", sample[suffix], _label(sample))
    except _READ_ERRORS as error:
        reason = str(error.args[0] if error.args else error).split(" @ ")[0]
        if not members:
            raise ConfigError(
                f"the shard {shard} cannot be read as a tar ({reason}); replace it, or remove it from datasets.root."
            ) from None
        yield Sample(f"{shard} (truncated: {reason})", b"", -1)


def _members(shard: str) -> Iterator[dict[str, Any]]:
    """Yield the samples of a shard as mappings from suffix to bytes."""
    stream = gopen(shard)
    # The exit status of a command is checked after its output is exhausted; earlier it would be racy.
    set_options(stream, ignore_errors=True)
    try:
        yield from group_by_keys(tar_file_expander(iter([{"url": shard, "stream": stream}])))
        while stream.read(2**20):  # drain the pipe
            pass
    finally:
        stream.close()
    if getattr(stream, "status", None) not in (None, *getattr(stream, "ignore_status", ())):
        raise OSError(f"the command exited with status {stream.status}")


def _label(sample: dict[str, Any]) -> int:
    """Return the whole number in `.cls`, or under `label` in `.json`; -1 without one."""
    by_kind = {key.rsplit(".", 1)[-1]: value for key, value in sample.items()}
    try:
        return int(by_kind["cls"] if "cls" in by_kind else json.loads(by_kind["json"])["label"])
    except (KeyError, TypeError, ValueError):
        return -1
