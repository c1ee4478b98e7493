#!/usr/bin/env python3
"""Images per second and core of the input pipeline, beside the usual ones at equal augmentation, all taking turns.

    uv run python tests/benchmarks/pipeline.py cifar [--size 224]
    uv run python tests/benchmarks/pipeline.py photographs --folder FOLDER [--enlarge 8 --batch 24]

`cifar`: random 32-pixel images in memory; random resized crop, flip, colour jitter (all four, always) and
normalisation, in ours by the batch and in torchvision's v2 transforms by the image (from PIL and from tensors).
`photographs`: files of a folder; random resized crop, flip and normalisation: ours, timm's loader, torchvision's
ImageFolder (PIL) with v2, and torchvision's decoder with v2; with `--enlarge` files of a batch with sides so many times
as long, as a camera's are. One thread, no worker processes.
"""

import argparse
import glob
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from PIL import Image
from timm.data import create_loader, create_transform
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.data.augment.multicrop import Augmenters, ViewPlan
from hjepa_pl.data.loading.batches import Draw, RawBatch, RawGroup
from hjepa_pl.data.loading.reader import FileReader, IndexedSource
from hjepa_pl.data.loading.views import make_views
from hjepa_pl.data.sources.images import FileImages
from hjepa_pl.types import Counters
from hjepa_pl.utils.malloc import keep_freed_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, JITTER = (0.2, 1.0), (0.4, 0.4, 0.2, 0.1)


def transform(size: int, jitter: bool) -> v2.Compose:
    """Return torchvision's transforms."""
    parts = [v2.RandomResizedCrop(size, SCALE, antialias=True), v2.RandomHorizontalFlip()]
    parts += [v2.ColorJitter(*JITTER)] if jitter else []
    return v2.Compose([v2.ToImage(), *parts, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def plan(size: int, jitter: bool) -> ViewPlan:
    """Return our views of the same augmentation."""
    parts = {"jitter": JITTER, "jitter_prob": 1.0} if jitter else {}
    config = AugmentationConfig(preset="jepa", crop_scale=SCALE, flip=0.5, **parts)
    return ViewPlan((Augmenters(Augmenter(config, size, MEAN, STD, seed=0)),), 1)


def cifar(a: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """Return what makes one batch, by name."""
    images = torch.randint(0, 256, (a.batch, 3, 32, 32), dtype=torch.uint8)
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in images]
    theirs, ours, label = transform(a.size, True), plan(a.size, True), torch.zeros(a.batch, dtype=torch.int64)
    few = max(1, a.batch // 4)  # one image after the other: fewer say as much

    def batched() -> int:
        rows = torch.arange(a.batch)
        group = RawGroup(rows, (images,), None)
        make_views(RawBatch((group,), label, label, Counters(0, 0, rows)), ours, 3)
        return a.batch

    def by_image(source: list[Image.Image] | Tensor) -> Callable[[], int]:
        def run() -> int:
            torch.stack([theirs(x) for x in source[:few]])
            return few

        return run

    return {"ours": batched, "torchvision v2, PIL": by_image(pictures), "torchvision v2, tensors": by_image(images)}


def enlarged(paths: list[str], times: int, folder: str) -> str:
    """Write larger copies of files, in one class folder."""
    os.makedirs(os.path.join(folder, "all"))
    for i, path in enumerate(paths):
        with Image.open(path) as image:
            sides = tuple(side * times for side in image.size)
            large = image.convert("RGB").resize(sides, Image.Resampling.LANCZOS)
            large.save(os.path.join(folder, "all", f"{i}.jpg"), quality=92)
    return folder


def files_of(folder: str) -> list[str]:
    """Return all files under a folder."""
    return sorted(p for p in glob.glob(os.path.join(folder, "**", "*"), recursive=True) if os.path.isfile(p))


def photographs(a: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """Return what reads one batch of files, by name."""
    from torchvision.io import decode_image

    paths = files_of(a.folder)
    if a.enlarge > 1:
        a.folder = enlarged(paths[: a.batch], a.enlarge, a.scratch)
        paths = files_of(a.folder)
    paths = (paths * (a.batch // len(paths) + 1))[: a.batch]
    theirs, ours = transform(a.size, False), plan(a.size, False)
    label = torch.zeros(a.batch, dtype=torch.int64)
    reader = FileReader([IndexedSource(FileImages(paths, label, ["all"]), 0)], ["all"], ours, 3)
    folder = ImageFolder(a.folder, theirs)
    usual = ImageFolder(a.folder)
    usual.transform = create_transform(
        a.size,
        is_training=True,
        scale=SCALE,
        hflip=0.5,
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
    )

    def of_ours() -> int:
        rows = torch.arange(a.batch)
        counters = Counters(0, 0, rows)
        read = reader.read(Draw(label, rows, counters))
        make_views(RawBatch(read.groups, label, label, counters), ours, 3)
        return a.batch

    def of_folder() -> int:
        torch.stack([folder[i % len(folder)][0] for i in range(a.batch)])
        return a.batch

    def of_decoder() -> int:
        torch.stack([theirs(decode_image(p, mode="RGB")) for p in paths])
        return a.batch

    def stream() -> Iterator[Tensor]:
        while True:
            yield from (
                x
                for x, _ in create_loader(
                    usual, (3, a.size, a.size), a.batch if a.batch <= len(usual) else len(usual), is_training=True,
                    use_prefetcher=False, num_workers=0, mean=MEAN, std=STD, scale=SCALE, color_jitter=0.0,
                    interpolation="bilinear", device=torch.device("cpu"), persistent_workers=False,
                )
            )  # fmt: skip

    batches = stream()
    return {
        "ours": of_ours,
        "torchvision decoder, v2": of_decoder,
        "ImageFolder (PIL), v2": of_folder,
        "timm's loader": lambda: len(next(batches)),
    }


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cifar", "photographs"))
    parser.add_argument("--folder")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--enlarge", type=int, default=1)
    a = parser.parse_args()
    a.batch = a.batch or (256 if a.what == "cifar" else 100)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*decoding and encoding capabilities of TorchVision.*")
    with tempfile.TemporaryDirectory() as a.scratch:
        compare(a, {"cifar": cifar, "photographs": photographs}[a.what](a))


def compare(a: argparse.Namespace, runs: dict[str, Callable[[], int]]) -> None:
    """Let them take turns, and print medians and ratios."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(a.rounds + 1):
        for name, run in runs.items():
            keep_freed_memory(name == "ours")  # as our runs on a CPU and our workers do
            run()  # what was said of memory holds for what comes after
            began = time.perf_counter()
            count = run()
            rates[name].append(count / (time.perf_counter() - began))
    print(f"{a.what} to {a.size} pixels, batch {a.batch}, one thread, {a.rounds} rounds, medians")
    for name, found in rates.items():
        ratio = statistics.median(x / y for x, y in zip(rates["ours"][1:], found[1:], strict=True))
        print(f"{name:28s} {statistics.median(found[1:]):8.0f} images/s   ours is {ratio:.2f} x")


if __name__ == "__main__":
    main()
