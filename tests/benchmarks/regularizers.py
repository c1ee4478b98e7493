#!/usr/bin/env python3
"""What SIGReg and VICReg cost against the width K of the embeddings: time and peak memory, forward and backward.

    uv run python tests/benchmarks/regularizers.py
    uv run python tests/benchmarks/regularizers.py --device cuda --rounds 50

SIGReg has 256 directions, its work K x 256 for each image; the covariance of VICReg has K x K entries. `directions` is
the part of SIGReg that draws them. Time: median over rounds in which all widths and terms take turns. Memory: each in a
process of its own, on the CPU (Linux) what its resident memory grows by at most, after a tiny step which loads the
kernels, on CUDA what PyTorch allocates at most. Exponents are slopes of a line through the upper half of the widths,
log over log.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hjepa_pl.functional.counters import normal
from hjepa_pl.losses import VICReg
from hjepa_pl.losses.sigreg import sigreg

SLICES = 256
TERMS: dict[str, Callable[[Tensor], Tensor]] = {
    "SIGReg": lambda x: sigreg(x, 1, SLICES),
    "VICReg": lambda x: VICReg()(x),  # one view: variance and covariance
}


def run(term: str, x: Tensor) -> None:
    """Do what is measured once."""
    if term == "directions":
        normal(1, (x.shape[1], SLICES), x.device)
    else:
        TERMS[term](x).backward()
        x.grad = None
    if x.device.type == "cuda":
        torch.cuda.synchronize()


def embeddings(a: argparse.Namespace, width: int, batch: int | None = None) -> Tensor:
    """Return (B, K) embeddings that take a gradient."""
    return torch.randn(batch or a.batch, width, device=a.device, requires_grad=True)


def times(a: argparse.Namespace) -> dict[str, list[float]]:
    """Return milliseconds by term, one for each width."""
    drawn = {width: embeddings(a, width) for width in a.widths}
    found: dict[tuple[str, int], list[float]] = {(t, w): [] for w in a.widths for t in (*TERMS, "directions")}
    for _ in range(a.rounds + 1):
        for (term, width), seconds in found.items():
            began = time.perf_counter()
            run(term, drawn[width])
            seconds.append(time.perf_counter() - began)
    middle = {key: 1e3 * statistics.median(seconds[1:]) for key, seconds in found.items()}
    return {term: [middle[term, width] for width in a.widths] for term in (*TERMS, "directions")}


def memory(a: argparse.Namespace, term: str, width: int) -> float:
    """Return MiB that a term takes at most, measured in a process of its own."""
    words = [sys.executable, __file__, "--device", a.device, "--batch", str(a.batch), "--one", term, "--widths"]
    done = subprocess.run([*words, str(width)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1]) / 2**20


def most_resident() -> int:
    """Return the most bytes that this process held; `ru_maxrss` would start from the parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def print_memory(a: argparse.Namespace) -> None:
    """Print the bytes that one term takes in this process."""
    run(a.one, embeddings(a, 8, 8))
    if a.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(a.one, embeddings(a, a.widths[0]))
        print(torch.cuda.max_memory_allocated() - before)
        return
    before = most_resident()
    run(a.one, embeddings(a, a.widths[0]))
    print(most_resident() - before)


def exponent(widths: list[int], values: list[float]) -> float:
    """Return the slope over the upper half of the widths."""
    half = len(widths) // 2
    return float(np.polyfit(np.log(widths[half:]), np.log(values[half:]), 1)[0])


def main() -> None:
    """Read the command line, measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--widths", type=int, nargs="+", default=[128 * 2**i for i in range(7)])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        print_memory(a)
        return
    columns = {f"{term}, ms": values for term, values in times(a).items()}
    columns |= {f"{term}, MiB": [memory(a, term, width) for width in a.widths] for term in TERMS}
    print(
        f"batch {a.batch}, {a.rounds} rounds, {a.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"\n| K | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for i, width in enumerate(a.widths):
        print(f"| {width} | {' | '.join(f'{values[i]:.1f}' for values in columns.values())} |")
    print(f"| exponent | {' | '.join(f'{exponent(a.widths, v):.2f}' for v in columns.values())} |")


if __name__ == "__main__":
    main()
