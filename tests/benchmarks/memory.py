"""How much memory a run's images take, by the number of workers.

`python tests/benchmarks/memory.py --images 113000 --where /tmp/memory` writes STL-10 (of so many images), CIFAR-10 and
CIFAR-100 in their official formats, with noise for images, and a folder of JPEGs for the workers to decode, all of it
there (removed afterwards). For each number of workers a process of its own sets the data module up, with the three as
training sets and as probes beside the folder, draws batches, and adds up the proportional set sizes (a page that n
processes share counts 1 / n in each) of itself and its workers. Printed are, in MiB: the process before it loads, these
sums, the part that the workers have for themselves, and the parent's peak (while it loads). Linux only.
"""

import argparse
import os
import pickle
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import torch.multiprocessing
import torchvision.datasets as tv
from PIL import Image

from hjepa_pl.data import MultiDatasetDataModule

_TEST, _LABELLED = 8000, 5000
_MIB = 2**20


def children(pid: int) -> list[int]:
    """Return the processes that this one started, and theirs."""
    found = [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]
    return [q for p in found for q in (p, *children(p))]


def measured(pid: int, key: str = "Pss", file: str = "smaps_rollup") -> int:
    """Return a figure of a process's memory in bytes."""
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.split(":")[0] == key)


def write(where: Path, images: int) -> None:
    """Write the three sets, of the official numbers but for STL-10, and 512 JPEGs of 256 x 256 pixels."""
    rng = np.random.default_rng(0)
    base = where / "stl10_binary"
    base.mkdir(parents=True)
    parts = {"train": _LABELLED, "test": _TEST, "unlabeled": images - _LABELLED - _TEST}
    for part, count in parts.items():
        with open(base / f"{part}_X.bin", "wb") as file:
            for first in range(0, count, 1000):
                file.write(rng.bytes(min(1000, count - first) * 3 * 96 * 96))
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(base / f"{part}_y.bin")
    for kind, key in ((tv.CIFAR10, "labels"), (tv.CIFAR100, "fine_labels")):
        files = kind.train_list + kind.test_list
        base = where / kind.base_folder
        base.mkdir()
        for name, _ in files:
            count = {5: 10_000, 1: 50_000}[len(kind.train_list)] if name != "test" else 10_000
            pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
            (base / name).write_bytes(pickle.dumps({"data": pixels, key: [i % 10 for i in range(count)]}))
        (base / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: [str(i) for i in range(10)]}))
    for i in range(512):
        (where / "photographs").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(where / f"photographs/{i:03d}.jpg")


def run(where: Path, workers: int, method: str) -> str:
    """Draw batches in this process, and return a line of the table."""
    for kind in (tv.CIFAR10, tv.CIFAR100, tv.STL10):  # of our files the official sums are wrong
        for part in ("train_list", "test_list"):
            setattr(kind, part, [[name, None] for name, _ in getattr(kind, part)])
        if hasattr(kind, "meta"):
            kind.meta = kind.meta | {"md5": None}
    torch.multiprocessing.set_start_method(method)
    root, names = str(where), ("stl10", "cifar10", "cifar100")
    splits = {"stl10": "train+unlabeled"}
    data = MultiDatasetDataModule(
        [
            *({"name": name, "root": root, "split": splits.get(name, "train")} for name in names),
            {"name": "folder", "root": str(where / "photographs"), "weight": 3.0},
        ],
        batch_size=64, num_workers=workers, img_size=32, in_chans=3,
        probe=[{"name": name, "root": root} for name in names],
    )  # fmt: skip
    empty = measured(os.getpid())
    data.setup("fit")
    batches = iter(data.train_dataloader())
    assert len(list(islice(batches, 20))) == 20
    # The probes' loaders are open beside it, as while a run is judged.
    judged = [iter(loader) for loader in data.val_dataloader()]
    assert all(next(loader).image.any() for loader in judged)
    processes = children(os.getpid())
    assert len(processes) >= workers
    own = sum(measured(p, "Private_Dirty") for p in processes)
    total = measured(os.getpid()) + sum(map(measured, processes))
    peak = measured(os.getpid(), "VmHWM", "status")
    return f"{workers:>7}  {empty / _MIB:>10,.0f}  {total / _MIB:>10,.0f}  {own / _MIB:>12,.0f}  {peak / _MIB:>10,.0f}"


def main() -> None:
    """Measure, each number of workers in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=113_000, help="of STL-10")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--method", default="fork", choices=("fork", "spawn", "forkserver"))
    parser.add_argument("--where", type=Path, required=True)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(run(args.where, args.workers[0], args.method))
        return
    try:
        write(args.where, args.images)
        images = args.images * 3 * 96 * 96 + 2 * 60_000 * 3 * 32 * 32
        print(f"{args.images:,} + 120,000 images of {images / _MIB:,.0f} MiB, {args.method}; MiB:")
        print("workers  PSS, empty  PSS, total  workers' own  peak, load")
        for workers in args.workers:
            given = ["--where", str(args.where), "--workers", str(workers), "--method", args.method, "--child"]
            done = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True)
            print(done.stdout.strip("\n") or done.stderr, flush=True)
    finally:
        shutil.rmtree(args.where)


if __name__ == "__main__":
    main()
