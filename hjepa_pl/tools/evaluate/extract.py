"""Features of a set of images by a network, kept in files so that a killed or repeated evaluation goes on."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from hjepa_pl.data.loading.eval_loader import CleanRows, clean_batch, clean_loader
from hjepa_pl.data.loading.image_spec import ImageSpec
from hjepa_pl.data.loading.worker_slots import available_workers, choose_num_workers
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.data.sources.images import FileImages, IndexedImages, is_in_memory
from hjepa_pl.tools.evaluate.kinds import Kind
from hjepa_pl.tools.evaluate.networks import Network, Pixels
from hjepa_pl.utils.atomic_file import atomic_write

_PART = 4096
"""Images in a file of the cache: what a kill loses at most."""
_FOLDER = "features"
"""Folder within the cache, where everything is the cache's own."""
_VERSION = 1
"""Raised when the same settings give other features, which empties the cache."""


class Split(NamedTuple):
    """Images to encode."""

    name: str
    """For messages: "cifar10 (train)"."""
    images: IndexedImages
    rows: Tensor
    """(N,) int64: which of them."""


class Pass(NamedTuple):
    """How images are passed through a network."""

    device: torch.device
    precision: torch.dtype
    batch_size: int
    cache: Path | None
    """Folder of the features; None keeps nothing."""


class Part(NamedTuple):
    """Features of consecutive images of a split, as they are kept in a file."""

    features: Tensor
    labels: Tensor


class Extracted(NamedTuple):
    """Features of a split."""

    features: dict[str, Tensor]
    """(N, D) float32 on the CPU, by kind."""
    labels: Tensor
    """(N,) int64 of the images that were read: a file that cannot be decoded is replaced by the next one."""
    encoded: int
    """Images that were passed through the network; the others were in the cache."""
    seconds: float


def extract(
    network: Network, split: Split, kinds: Sequence[Kind], how: Pass, bad: BadFiles, advance: Callable[[int], None]
) -> Extracted:
    """Return the features of a split.

    Args:
        network: Computes them.
        split: The images.
        kinds: Kinds of features.
        how: Device, precision, batch size and cache.
        bad: Takes the files that cannot be decoded.
        advance: Called with the number of images that are done.
    """
    began, encoded = time.perf_counter(), 0
    folder = None if how.cache is None or isinstance(network, Pixels) else _folder(network, split, how)
    parts: dict[str, list[Part]] = {kind.name: [] for kind in kinds}
    prepared: tuple[Kind, ...] = ()
    for start in range(0, len(split.rows), _PART):
        positions = range(start, min(start + _PART, len(split.rows)))
        found = {kind.name: _read(folder, start, kind, len(positions)) for kind in kinds}
        missing = tuple(kind for kind in kinds if found[kind.name] is None)
        if missing:
            if missing != prepared:
                network.prepare(missing, how.device)
                prepared = missing
            values, labels = pass_images(network.encode, network.spec, split, positions, how, bad, advance)
            encoded += len(positions)
            for kind, value in zip(missing, values, strict=True):
                found[kind.name] = Part(value, labels)
                _write(folder, start, kind, Part(value, labels))
        else:
            advance(len(positions))
        for kind in kinds:
            parts[kind.name].append(found[kind.name])  # type: ignore[arg-type]
    features = {name: torch.cat([part.features for part in found]) for name, found in parts.items()}
    labels = torch.cat([part.labels for part in parts[kinds[0].name]])
    return Extracted(features, labels, encoded, time.perf_counter() - began)


@torch.inference_mode()
def pass_images(
    compute: Callable[[Tensor], list[Tensor]],
    spec: ImageSpec,
    split: Split,
    positions: range,
    how: Pass,
    bad: BadFiles,
    advance: Callable[[int], None],
    dtype: torch.dtype = torch.float32,
) -> tuple[list[Tensor], Tensor]:
    """Pass some images of a split through a network; return what is computed, and the labels of the images.

    Args:
        compute: From normalized images (B, C, H, W) on the device to tensors (B, ...).
        spec: Images that it takes.
        split: The images.
        positions: Which of them.
        how: Device, precision and batch size.
        bad: Takes the files that cannot be decoded.
        advance: Called with the number of images that are done.
        dtype: Of the results, on the CPU.
    """
    rows = CleanRows(split.images, split.rows, spec.size, spec.channels, split.name)
    workers = choose_num_workers([split.images], None, available_workers(None), 1)
    on_gpu = how.device.type == "cuda"
    loader = clean_loader(rows, positions, batch_size=how.batch_size, num_workers=workers, pin_memory=on_gpu)
    half = how.precision != torch.float32
    batches: list[list[Tensor]] = []
    for raw in loader:
        raw = raw._replace(image=raw.image.to(how.device, non_blocking=True))
        images = clean_batch(raw, spec, bad).image
        with torch.autocast(how.device.type, how.precision) if half else nullcontext():
            batches.append([*(value.to("cpu", dtype) for value in compute(images)), raw.label])
        advance(len(images))
    *values, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return values, labels


def _folder(network: Network, split: Split, how: Pass) -> Path | None:
    """Return the folder of the cache for a network and a split; None for images of an unknown kind."""
    content = _content(split)
    if content is None or how.cache is None:
        return None
    recipe = {
        "version": _VERSION,
        "network": network.identity,
        "spec": list(network.spec),
        "images": content,
        "device": how.device.type,
        "precision": str(how.precision),
        "torch": torch.__version__,
    }
    name = hashlib.sha256(json.dumps(recipe, sort_keys=True, default=str).encode()).hexdigest()[:24]
    return how.cache / _FOLDER / name


def _content(split: Split) -> str | None:
    """Return a hash of the images: their pixels in memory, or path, size and time of their files."""
    digest = hashlib.sha256(split.rows.numpy().tobytes())
    if is_in_memory(split.images):
        digest.update(split.images.images[split.rows].cpu().numpy().tobytes())
    elif isinstance(split.images, FileImages):
        for index in split.rows.tolist():
            path = split.images.path(index)
            stat = os.stat(path)
            digest.update(f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    else:
        return None
    return digest.hexdigest()


def _file(folder: Path, start: int, kind: Kind) -> Path:
    return folder / f"{start:09d}-{kind.name}.safetensors"


def _read(folder: Path | None, start: int, kind: Kind, count: int) -> Part | None:
    """Return a part from the cache; None if it is not there or not whole."""
    if folder is None or not (path := _file(folder, start, kind)).is_file():
        return None
    try:
        found: Any = load_file(path)
        part = Part(found["features"], found["labels"])
    except (SafetensorError, OSError, KeyError):
        return None
    with suppress(OSError):
        os.utime(path)  # when it was last used
    return part if len(part.features) == len(part.labels) == count else None


def _write(folder: Path | None, start: int, kind: Kind, part: Part) -> None:
    if folder is not None:
        with atomic_write(_file(folder, start, kind), "wb", sync=False) as file:
            file.write(save(part._asdict()))


def trim(cache: Path, limit: float = 10e9) -> None:
    """Delete the parts that were used least recently, so that a cache holds at most `limit` bytes.

    Another evaluation may do the same at the same time.
    """
    found = []
    for path in (cache / _FOLDER).glob("*/*.safetensors"):
        with suppress(OSError):
            stat = path.stat()
            found.append((stat.st_mtime, stat.st_size, path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > limit:
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()  # if it was the last one
