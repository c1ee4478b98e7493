"""How long a tree of images takes to list: by walking it, and from the kept listing.

`python tests/benchmarks/indexing.py --files 200000 --folders 1000 --where /tmp/idx` makes a tree of empty files there
(removed afterwards), and prints one line: seconds of the walk, and the median of five times from the listing, both up
to the dataset that training draws from. Nothing is decoded. The file system's cache is warm in both.

A second line tells how long it takes to find and open an image at random, in the first hundred folders alone (as
ImageNet-100 is read out of ImageNet) and in all: the median of 2,000.
"""

import argparse
import os
import shutil
import statistics
import time

import numpy as np

from hjepa_pl.data.sources.class_folders import Tree
from hjepa_pl.data.sources.image_folder import scan


def make(top: str, files: int, folders: int) -> None:
    """Make a tree with names as long as ImageNet's, whose folders seem to have been left alone for an hour."""
    for folder in range(folders):
        here = os.path.join(top, f"n{folder:08d}")
        os.makedirs(here)
        for i in range(folder, files, folders):
            os.close(os.open(os.path.join(here, f"n{folder:08d}_{i:08d}.JPEG"), os.O_CREAT | os.O_WRONLY))
        os.utime(here, (time.time() - 3600,) * 2)
    os.utime(top, (time.time() - 3600,) * 2)


def timed(top: str, kept: str | None) -> tuple[float, int]:
    """Return the seconds of one listing and how many images it has."""
    start = time.perf_counter()
    images = scan("folder", Tree(top), kept)
    return time.perf_counter() - start, len(images)


def access(top: str, folders: list[str] | None) -> tuple[float, int]:
    """Return the median microseconds to open an image at random, of how many."""
    images = scan("folder", Tree(top, None if folders is None else tuple(folders)))
    times = []
    for i in np.random.default_rng(0).integers(0, len(images), 2000).tolist():
        start = time.perf_counter()
        open(images.path(i), "rb").close()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6, len(images)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folders", type=int, default=1000)
    parser.add_argument("--where", required=True)
    args = parser.parse_args()
    tree, kept = os.path.join(args.where, "tree"), os.path.join(args.where, "kept")
    try:
        make(tree, args.files, args.folders)
        walk, count = timed(tree, None)
        assert count == args.files
        first, _ = timed(tree, kept)
        again = [timed(tree, kept) for _ in range(5)]
        assert {n for _, n in again} == {args.files}
        megabytes = sum(e.stat().st_size for e in os.scandir(kept)) / 2**20
        print(
            f"{args.files} files in {args.folders} folders: walk {walk:.2f} s, walk and keep {first:.2f} s, "
            f"from the listing {statistics.median(s for s, _ in again):.3f} s, listing of {megabytes:.0f} MiB"
        )
        hundred = [f"n{i:08d}" for i in range(min(100, args.folders))]
        for folders in (hundred, None):
            microseconds, count = access(tree, folders)
            print(f"one of {count} images at random: opened in {microseconds:.1f} us")
    finally:
        shutil.rmtree(args.where)


if __name__ == "__main__":
    main()
