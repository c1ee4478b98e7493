#!/usr/bin/env python3
"""What each feature costs: step time and peak memory of a ViT-S/16 step at 224 pixels, as ratios to the plain step.

    uv run python tests/benchmarks/features.py time --bf16 --batch 16
    uv run python tests/benchmarks/features.py memory --bf16 --batch 64 --only checkpointing "checkpointing, every 3"
    uv run python tests/benchmarks/features.py time --bf16 --batch 8 --only "three, 2 views + 6 crops" "LeJEPA, 2 views"

`time`: all variants take turns in one process; a ratio is the median over the rounds of (variant / plain).
`memory`: each variant runs two steps in a process of its own; on the CPU what its resident memory grows by at most, on
CUDA what PyTorch allocates at most.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from typing import Any

import torch
from step import make_batch, timed_step

from hjepa_pl import HJEPALightningModule

ONE: list[dict[str, Any]] = [{"cell": 1}]
IMAGE: dict[str, Any] = {"cell": "image"}
RECOMPUTE = {"grad_checkpointing": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"levels": ONE},
    "three levels: cells 1 and 2, depth 8": {"levels": [{"block": 8}, {"cell": 1}, {"cell": 2}]},
    "two levels: cells 1 and 2": {"levels": [{"cell": 1}, {"cell": 2}]},
    "two levels + pyramid": {"levels": [{"cell": 1}, {"cell": 2}], "pyramid": {}},
    "two levels + pyramid, concat": {"levels": [{"cell": 1}, {"cell": 2}], "pyramid": {"fusion": "concat"}},
    "RoPE": {"encoder": {"position": "rope"}},
    "RoPE, mixed": {"encoder": {"position": "rope_mixed"}},
    "RoPE, predictor too": {"encoder": {"position": "rope"}, "predictor": {"position": "rope"}},
    "LayerScale": {"encoder": {"init_values": 1e-5}},
    "registers, 4": {"encoder": {"reg_tokens": 4}},
    "qk_norm": {"encoder": {"qk_norm": True}},
    "attention eager": {"encoder": {"attention": "eager"}},
    "attention flash": {"encoder": {"attention": "flash"}},
    "attention math": {"encoder": {"attention": "math"}},
    "checkpointing": {"encoder": RECOMPUTE, "predictor": RECOMPUTE},
    "checkpointing, every 3": {
        "encoder": {**RECOMPUTE, "checkpoint_every": 3},
        "predictor": {**RECOMPUTE, "checkpoint_every": 3},
    },
    "LeJEPA, 2 views": {"levels": [IMAGE], "data": (2, 0)},
    "LeJEPA, 2 views + 6 crops": {"levels": [IMAGE], "data": (2, 6)},
    "three, 2 views": {"levels": "three", "data": (2, 0)},
    "three, 2 views + 6 crops": {"levels": "three", "data": (2, 6)},
    "one level, image, 2 whole views + 6 crops": {"levels": [*ONE, IMAGE], "data": (2, 6)},
    "three, 2 + 6, crops in the context": {
        "levels": "three", "data": (2, 6), "masks": {"strategy": "global_with_local_context"},
    },
    "three, 2 + 6, crops predicted": {
        "levels": "three", "data": (2, 6), "masks": {"strategy": "cross_crop_prediction"},
    },
}  # fmt: skip


class Runner:
    """A variant's module, optimizer and step."""

    def __init__(self, a: argparse.Namespace, variant: dict[str, Any]) -> None:
        encoder = {"size": a.size, "patch_size": a.patch, "img_size": a.img, **variant.get("encoder", {})}
        predictor = {"embed_dim": 384, "depth": 6, "num_heads": 6, **variant.get("predictor", {})}
        rest = {"levels": ONE} | {k: v for k, v in variant.items() if k not in ("encoder", "predictor", "data")}
        if rest["levels"] != [IMAGE]:
            rest["predictor"] = predictor
        self.bf16, self.data = a.bf16, variant.get("data", (1, 0))
        self.module = HJEPALightningModule(encoder=encoder, **rest).train().to(a.device)
        self.optimizer = self.module.configure_optimizers()

    def step(self, images: torch.Tensor) -> float:
        """Make a step; return its seconds."""
        return timed_step(self.module, self.optimizer, make_batch(images, 0, *self.data), self.bf16)


def images_of(a: argparse.Namespace) -> torch.Tensor:
    """Return the batch."""
    return torch.randn(a.batch, 3, a.img, a.img, generator=torch.Generator().manual_seed(0)).to(a.device)


def chosen(a: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the variants asked for, the plain one first."""
    return {k: v for k, v in VARIANTS.items() if not a.only or k in a.only or k == "plain"}


def run_time(a: argparse.Namespace) -> None:
    """Print the median step of every variant and its ratio to the plain one."""
    images = images_of(a)
    runners = {name: Runner(a, variant) for name, variant in chosen(a).items()}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(a.rounds + 1):
        for name, runner in runners.items():
            seconds[name].append(runner.step(images))
    print(f"step of ViT-{a.size}/{a.patch} at {a.img}, batch {a.batch}, bf16={a.bf16}, {a.device}, {a.rounds} rounds")
    for name, found in seconds.items():
        ratio = statistics.median(x / y for x, y in zip(found[1:], seconds["plain"][1:], strict=True))
        print(f"{name:40s} {statistics.median(found[1:]) * 1e3:8.0f} ms   {ratio:.3f} x", flush=True)


def run_memory(a: argparse.Namespace) -> None:
    """Print the peak memory of every variant."""
    peaks = {}
    for name in chosen(a):
        words = [a for a in sys.argv[1:] if a != "memory"]
        done = subprocess.run(
            [sys.executable, __file__, "one", *words, "--variant", name], capture_output=True, text=True, check=True
        )
        peaks[name] = json.loads(done.stdout.splitlines()[-1])
        ratio = peaks[name] / peaks["plain"]
        print(f"{name:40s} {peaks[name] / 2**20:8.0f} MiB   {ratio:.3f} x", flush=True)


def run_one(a: argparse.Namespace) -> None:
    """Print the bytes that two steps of one variant take beyond those of the process before."""
    if a.device == "cuda":
        runner = Runner(a, VARIANTS[a.variant])
        for _ in range(2):
            runner.step(images_of(a))
        print(torch.cuda.max_memory_allocated())
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runner = Runner(a, VARIANTS[a.variant])
    for _ in range(2):
        runner.step(images_of(a))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("time", "memory", "one"))
    parser.add_argument("--size", default="small")
    parser.add_argument("--img", type=int, default=224)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    a = parser.parse_args()
    {"time": run_time, "memory": run_memory, "one": run_one}[a.command](a)


if __name__ == "__main__":
    main()
