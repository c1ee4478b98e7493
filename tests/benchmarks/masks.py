#!/usr/bin/env python3
"""What the default masks show and ask for, on the usual grids; and what drawing them takes.

    uv run python tests/benchmarks/masks.py

One row a grid, cells and kind, over the shapes of its table: the share of patches that the context encoder sees; the
share that some level is asked for; the share of the queries that repeat another of the same image and level; what is
neither seen nor asked for; the share of the asked patches with no neighbour that is asked too (of the finest level).
Then the processor's time for masks of 128 images, one thread, with freed memory kept, as in a run.
"""

import argparse
import statistics
import time

import torch

from hjepa_pl.masks import MaskConfig, MaskGenerator, build_masks
from hjepa_pl.types import Counters, Masks
from hjepa_pl.utils.malloc import keep_freed_memory

CASES = [
    ("multiblock", (4, 4), (1,)), ("multiblock", (4, 4), (1, 2)), ("multiblock", (6, 6), (1,)),
    ("multiblock", (6, 6), (1, 2)), ("multiblock", (7, 7), (1,)), ("multiblock", (8, 8), (1,)),
    ("multiblock", (8, 8), (1, 2)), ("multiblock", (12, 12), (1,)), ("multiblock", (12, 12), (1, 2)),
    ("multiblock", (14, 14), (1,)), ("multiblock", (14, 14), (1, 2)), ("multiblock", (16, 16), (1, 2)),
    ("multiblock", (16, 16), (1, 2, 4)), ("multiblock", (28, 28), (1, 2)), ("multiblock", (32, 32), (1, 2, 4)),
    ("hierarchical", (8, 8), (1, 2)), ("hierarchical", (14, 14), (1, 2)), ("hierarchical", (16, 16), (1, 2, 4)),
    ("random", (8, 8), (1, 2)), ("random", (14, 14), (1, 2)),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000, help="images of each case")
    parser.add_argument("--steps", type=int, default=400, help="steps that are timed")
    a = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"{'kind':12} {'grid':7} {'cells':9} visible  asked  repeated  neither  lone  blocks")
    for kind, grid, cells in CASES:
        masks = build_masks(MaskConfig(kind=kind), grid, cells, 0)
        shares = " ".join(f"{share:8.3f}" for share in shares_of(masks, a.images))
        shapes = " ".join(f"{s.blocks}*{s.height}x{s.width}" for s in dict.fromkeys(masks.shapes))
        print(f"{kind:12} {'x'.join(map(str, grid)):7} {','.join(map(str, cells)):9}{shares}  {shapes}")
    for kind, cells in (("multiblock", (1,)), ("multiblock", (1, 2)), ("hierarchical", (1, 2))):
        best, median = seconds_of(build_masks(MaskConfig(kind=kind), (14, 14), cells, 0), a.steps)
        print(f"{kind}, 14 x 14, cells {cells}: 128 images in {1e3 * median:.2f} ms (median), {1e3 * best:.2f} (best)")


def shares_of(masks: MaskGenerator, images: int) -> list[float]:
    """Return the means over images of: visible, asked for, repeated, neither, lone."""
    rows, steps = [], 24
    for step in range(steps):
        each = -(-images // steps)
        rows.append(_shares(masks, masks(Counters(0, step, torch.arange(each) + each * step))))
    return [statistics.fmean(column) for column in zip(*rows, strict=True)]


def _shares(masks: MaskGenerator, found: Masks) -> tuple[float, ...]:
    patches = masks.grid[0] * masks.grid[1]
    asked = [_patches(masks, level, found.targets[level].flatten(1)) for level in range(len(masks.cells))]
    union = torch.stack(asked).any(dim=0)
    seen = torch.zeros(len(union), patches, dtype=torch.bool).scatter_(1, found.context, True)
    assert not (union & seen.reshape(union.shape)).any()
    queries = sum(targets[0].numel() for targets in found.targets)
    distinct = sum(int(a.sum()) / c**2 / len(a) for a, c in zip(asked, masks.cells, strict=True))
    visible, wanted = seen.float().mean().item(), union.float().mean().item()
    return visible, wanted, 1 - distinct / queries, 1 - visible - wanted, _lone(asked[-1], masks.cell)


def _patches(masks: MaskGenerator, level: int, cells: torch.Tensor) -> torch.Tensor:
    """Mark the patches of a level's cells: (B, rows, columns)."""
    rows, columns = (side // masks.cells[level] for side in masks.grid)
    marked = torch.zeros(len(cells), rows * columns, dtype=torch.bool).scatter_(1, cells, True)
    marked = marked.reshape(-1, rows, columns)
    return marked.repeat_interleave(masks.cells[level], dim=1).repeat_interleave(masks.cells[level], dim=2)


def _lone(asked: torch.Tensor, cell: int) -> float:
    """Return the share of the asked whole cells with none beside, above or below that is asked too."""
    cells = torch.nn.functional.pad(asked[:, ::cell, ::cell], (1, 1, 1, 1))
    beside = cells[:, :-2, 1:-1] | cells[:, 2:, 1:-1] | cells[:, 1:-1, :-2] | cells[:, 1:-1, 2:]
    inner = cells[:, 1:-1, 1:-1]
    return (inner & ~beside).sum().item() / inner.sum().item()


def seconds_of(masks: MaskGenerator, steps: int) -> tuple[float, float]:
    """Return the best (of the fastest fortieth) and median time of the processor for masks of 128 images."""
    taken = []
    for step in range(steps):
        start = time.process_time()
        masks(Counters(0, step, torch.arange(128) + 128 * step))
        taken.append(time.process_time() - start)
    taken.sort()
    return taken[steps // 40], statistics.median(taken)


if __name__ == "__main__":
    main()
