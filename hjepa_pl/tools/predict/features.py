"""The features of a set of images, computed and written a batch at a time."""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hjepa_pl.backbones.backbone import Backbone, Branch
from hjepa_pl.backbones.exported import HEADER, header_of
from hjepa_pl.backbones.load import load_encoder
from hjepa_pl.data.augment.crop_resize import clean_resize
from hjepa_pl.data.sources.images import FileImages, IndexedImages, is_encoded, is_in_memory
from hjepa_pl.data.sources.registry import load_dataset
from hjepa_pl.tools.predict.stream import Column, TensorStream
from hjepa_pl.types import ConfigError, RunStopped
from hjepa_pl.utils.atomic_file import atomic_write
from hjepa_pl.utils.device import choose_device

_MAX_BAD = 0.1
"""Fraction of files that cannot be decoded above which nothing is kept."""


class Request(NamedTuple):
    """The words of the command line."""

    data: str
    ckpt: str
    out: str
    root: str | None
    split: str
    branch: Branch | None
    dtype: str
    batch_size: int
    num_workers: int | None
    device: str
    force: bool


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Batches of images in 8 bits, and whether each was decoded; of files at the size of the encoder.

    Args:
        images: The set.
        backbone: Decides size and channels.
    """

    def __init__(self, images: IndexedImages, backbone: Backbone) -> None:
        self.images, self.size, self.channels = images, backbone.img_size, backbone.in_chans

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: list[int]) -> tuple[Tensor, Tensor]:
        valid = torch.ones(len(index), dtype=torch.bool)
        if is_in_memory(self.images):
            return self.images.images[index], valid
        assert is_encoded(self.images)
        batch = torch.zeros(len(index), self.channels, *self.size, dtype=torch.uint8)
        for row, i in enumerate(index):
            try:
                pixels = self.images.item(i).open().pixels(self.channels)
            except OSError:
                valid[row] = False
                continue
            batch[row] = clean_resize(pixels[None], self.size)[0]
        return batch, valid


def predict(request: Request) -> int:
    """Write the features, and return 0.

    Raises:
        ConfigError: If a word is invalid, or checkpoint or images cannot be read.
        RunStopped: If too many files cannot be decoded; nothing is kept.
    """
    out = Path(request.out)
    _check(request, out)
    backbone = load_encoder(request.ckpt, request.branch, choose_device("--device", request.device))
    images, name = _images(request)
    with atomic_write(out, "wb") as file:
        bad = _write(file, images, backbone, request, name)
        if len(bad) > _MAX_BAD * len(images):
            raise RunStopped(f"{len(bad)} of {len(images)} files cannot be decoded{_first(images, bad)}; remove them.")
    broken = f"; {len(bad)} file(s) cannot be decoded{_first(images, bad)}" if bad else ""
    size = out.stat().st_size / 2**20
    print(f"{size:.1f} MiB {out}: {len(images):,} x {backbone.embed_dim} features of {name}{broken}")
    return 0


def _check(request: Request, out: Path) -> None:
    """Check the words, before anything is read."""
    for key, value, least in (("batch-size", request.batch_size, 1), ("num-workers", request.num_workers, 0)):
        if value is not None and value < least:
            raise ConfigError(f"invalid `--{key}={value}`: must be a whole number >= {least}.")
    if out.suffix != ".safetensors":
        raise ConfigError(f"invalid `--out={out}`: must end in .safetensors.")
    if os.path.lexists(out) and (out.is_dir() or not request.force):
        raise ConfigError(f"invalid `--out={out}`: exists; choose another name, or replace it with --force.")
    if request.root is not None and Path(request.data).is_dir():
        raise ConfigError(f"invalid `--root={request.root}`: has no effect with the folder {request.data}; remove it.")


def _images(request: Request) -> tuple[IndexedImages, str]:
    """Return the set of images, and what it is."""
    folder = Path(request.data)
    try:
        if folder.is_dir():
            split = f" ({request.split})" if (folder / request.split).is_dir() else ""
            return load_dataset("folder", request.data, request.split), f"{folder.name}{split}"
        return load_dataset(request.data, request.root, request.split), f"{request.data} ({request.split})"
    except ConfigError as error:
        if "datasets.name" in str(error):
            problem = "must be a folder, or the name of a dataset with an index"
            raise ConfigError(f"invalid `DATA={request.data}`: {problem}.") from None
        raise ConfigError(str(error).replace("datasets.", "--")) from None


def _write(file: Any, images: IndexedImages, backbone: Backbone, request: Request, name: str) -> list[int]:
    """Write the file; return the indices of the images that cannot be decoded."""
    count, dtype = len(images), torch.float16 if request.dtype == "float16" else torch.float32
    columns = {
        "labels": Column((count,), torch.int64),
        "features": Column((count, backbone.embed_dim), dtype),
        "valid": Column((count,), torch.bool),
    }
    paths = _paths(images)
    if paths is not None:
        columns["paths"] = Column((len(paths),), torch.uint8)
    header = header_of(backbone, images=name, split=request.split, classes=images.classes)
    stream = TensorStream(file, columns, {HEADER: json.dumps(header)})
    stream.append("labels", images.labels)
    if paths is not None:
        stream.append("paths", paths)
    batches: Any = [list(range(i, min(i + request.batch_size, count))) for i in range(0, count, request.batch_size)]
    loader: Any = DataLoader(
        Rows(images, backbone), batch_size=None, sampler=batches, num_workers=_workers(images, request.num_workers)
    )
    transform, device, bad = backbone.transform(), next(backbone.parameters()).device, []
    for number, (batch, valid) in enumerate(loader):
        with torch.no_grad():
            features = backbone(transform(batch.to(device))).cpu()
        features[~valid] = float("nan")
        stream.append("features", features.to(dtype))
        stream.append("valid", valid)
        bad += [batches[number][row] for row in (~valid).nonzero().flatten().tolist()]
        _progress(batches[number][-1] + 1, count)
    return bad


def _workers(images: IndexedImages, chosen: int | None) -> int:
    """Return the number of processes that decode files."""
    if images.in_memory:
        if chosen:
            raise ConfigError(f"invalid `--num-workers={chosen}`: has no effect, the images are in memory; remove it.")
        return 0
    return max(0, (os.cpu_count() or 1) - 1) if chosen is None else chosen


def _first(images: IndexedImages, bad: list[int]) -> str:
    """Return the name of the first of some images."""
    name = images.path(bad[0]) if isinstance(images, FileImages) else f"image {bad[0]}"
    return f", the first is {name}"


def _paths(images: IndexedImages) -> Tensor | None:
    """Return the paths of files below their common folder, one a line, as UTF-8; None of sets without paths."""
    if not isinstance(images, FileImages):
        return None
    paths = [images.path(i) for i in range(len(images))]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    text = "\n".join(os.path.relpath(path, folder).replace("\n", " ") for path in paths)
    return torch.frombuffer(bytearray(text.encode("utf-8", "surrogateescape")), dtype=torch.uint8)


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done:,} of {of:,} images", end="\n" if done == of else "", file=sys.stderr, flush=True)
