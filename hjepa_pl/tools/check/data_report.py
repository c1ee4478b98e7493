"""The report of `hjepa check --data`: datasets, probe sets and the speed of the loader."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.data.sources.bad_files import read_bad_files, reason
from hjepa_pl.data.sources.images import EncodedImages, Images, is_encoded, is_in_memory, is_indexed
from hjepa_pl.data.sources.shards import ShardImages, is_streamed, local_path
from hjepa_pl.data.sources.tar import read_shard
from hjepa_pl.tools.dry_run import DryCLI
from hjepa_pl.tools.format import duration, row
from hjepa_pl.types import ConfigError

_FILES, _SHARDS = 100, 10
_SECONDS, _WARM, _MOST = 5.0, 2, 50


def describe_data(cli: DryCLI) -> list[str]:
    """Return the lines about loaded datasets.

    Raises:
        ConfigError: If the data module is not `MultiDatasetDataModule`.
    """
    data = cli.datamodule
    if not isinstance(data, MultiDatasetDataModule):
        raise ConfigError(f"--data needs MultiDatasetDataModule, not {type(data).__name__}; remove it.")
    broken: dict[str, str] = {}
    lines, shares = [], data.share_drawn(0)
    for config, name, images in zip(data.datasets, data.names, data.sets.train, strict=True):
        where = "" if config.root is None else f" in {config.root}"
        text = f"{name}{where}, {config.split}: {_size(images)}, {_native(images, broken)}, {_labels(images)}"
        lines.append(row("data", f"{text}; {100 * shares[name]:.1f} % of an epoch"))
    for split, (images, index) in zip(data.sets.splits, data.sets.probe, strict=True):
        classes = len(images.labels[index].unique())
        text = f"{split.name}, {split.split}: {len(index):,} images of {classes} classes, {_native(images, broken)}"
        lines.append(row("probe", text))
    lines.append(row("loader", _rate(cli, data)))
    broken |= {file.path: file.reason for file in read_bad_files(str(cli.folder))}
    return [*lines, *(row("bad file", f"{path}: {why}") for path, why in sorted(broken.items()))]


def _size(images: Images) -> str:
    if is_streamed(images):
        count = "an unknown number of" if images.samples is None else f"{images.samples:,}"
        return f"{count} images in {len(images.shards):,} shards"
    return f"{len(images):,} images"


def _labels(images: Images) -> str:
    if not is_indexed(images):
        return "labels from .cls files"
    known = int((images.labels >= 0).sum())
    if not known:
        return "unlabeled"
    classes = len(images.labels[images.labels >= 0].unique())
    return f"{classes} classes" if known == len(images) else f"{classes} classes, {len(images) - known:,} unlabeled"


def _native(images: Images, broken: dict[str, str]) -> str:
    """Return the sizes of the images as height x width: of all in memory, or of some of the files, evenly spread."""
    if is_in_memory(images):
        channels, height, width = images.images.shape[1:]
        return f"{'gray' if channels == 1 else 'color'}, {height} x {width} pixels, in memory"
    seen: list[Tensor] = []
    if is_streamed(images):
        seen = _of_shards(images, broken)
    elif is_encoded(images):
        seen = _of_files(images, broken)
    if not seen:
        return "none of the sampled images can be read"
    sizes = sorted((tuple(image.shape[1:]) for image in seen), key=lambda s: s[0] * s[1])
    least, middle, most = (" x ".join(map(str, sizes[i])) for i in (0, len(sizes) // 2, -1))
    spread = f"{least} pixels" if least == most else f"{least} to {most} pixels, median {middle}"
    return f"{spread} ({len(sizes)} sampled)"


def _of_files(images: EncodedImages, broken: dict[str, str]) -> list[Tensor]:
    found, count = [], min(_FILES, len(images))
    for i in range(count):
        item = images.item(i * len(images) // count)
        try:
            found.append(item.open().pixels(None)[:1])
        except OSError as error:
            broken[item.path] = reason(error)
    return found


def _of_shards(images: ShardImages, broken: dict[str, str]) -> list[Tensor]:
    """Decode the first samples of some shards that are local files."""
    local = [path for path in map(local_path, images.shards) if path is not None]
    found: list[Tensor] = []
    count = min(_SHARDS, len(local))
    for i in range(count):
        for _, sample in zip(range(_FILES // _SHARDS), read_shard(local[i * len(local) // count]), strict=False):
            try:
                found.append(sample.open().pixels(None)[:1])
            except OSError as error:
                broken[sample.path] = reason(error)
    return found


def _rate(cli: DryCLI, data: Any) -> str:
    """Run the loader for some seconds, with views; return images per second, and the least time of an epoch."""
    device = cli.trainer.strategy.root_device
    loader = data.train_dataloader()
    seconds = _times(loader, data, device)
    rate = data.batch_size / statistics.median(seconds)
    batches = cli.batches() or 0
    workers = f"{loader.num_workers} workers" if loader.num_workers else "no workers"
    return (
        f"about {rate:,.0f} images/s (median of {len(seconds)} batches of {data.batch_size}; views on {device.type}, "
        f"{workers}, {torch.get_num_threads()} thread(s)): at least {duration(batches * data.batch_size / rate)} for "
        f"an epoch of {batches * data.batch_size:,} images, with any model"
    )


def _times(loader: Any, data: Any, device: torch.device) -> Sequence[float]:
    """Return the seconds of batches, without the first ones, which start the workers."""
    found: list[float] = []
    stop, began = float("inf"), time.perf_counter()
    for number, raw in enumerate(loader):
        data.on_after_batch_transfer(data.transfer_batch_to_device(raw, device, 0), 0)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if number == _WARM:
            stop = now + _SECONDS
        found.append(now - began)
        if now > stop or number >= _WARM + _MOST:
            break
        began = now
    return found[_WARM:] or found[-1:]
