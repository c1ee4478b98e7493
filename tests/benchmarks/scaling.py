#!/usr/bin/env python3
"""What a training step costs as each of its sizes grows: seconds and FLOPs, all variants in turn.

    uv run python tests/benchmarks/scaling.py --bf16 --out tests/benchmarks/scaling_cpu
    uv run python tests/benchmarks/scaling.py --bf16 --device cuda --base-width 384 --base-batch 256 --out scaling_gpu

One size is changed at a time: image side, patch, depth and width of the encoder, levels, views, batch. Writes
OUT.json, OUT.png and a table. The exponent of a size is the slope between its first and last value in logarithms.
"""

import argparse
import json
import math
import statistics
from typing import Any

import torch
from step import make_batch, timed_step
from torch.utils.flop_counter import FlopCounterMode

from hjepa_pl import HJEPALightningModule
from hjepa_pl.utils.malloc import keep_freed_memory

TWO = [{"cell": 1}, {"cell": 2}]
IMAGE = [{"cell": "image"}]
AXES: dict[str, list[Any]] = {
    "image side": [112, 160, 224, 320],
    "patch": [32, 16, 8],
    "depth": [4, 8, 12, 16],
    "width": [96, 192, 384, 768],
    "batch": [4, 8, 16, 32],
    "levels": ["flat", "cells 1, 2", "blocks 4, 8, last", "three"],
    "views": [1, 2, 4, 8],
}
LEVELS: dict[str, Any] = {
    "flat": "flat",
    "cells 1, 2": TWO,
    "blocks 4, 8, last": [{"block": 4}, {"block": 8}, {"cell": 1}],
    "three": "three",
}


class Variant:
    """A step with one size changed; `views` is of the image level alone, all else of the token level alone."""

    def __init__(self, a: argparse.Namespace, axis: str, value: Any) -> None:
        self.axis, self.value, self.bf16 = axis, value, a.bf16
        sizes = {"image side": a.base_side, "patch": 16, "depth": 12, "width": a.base_width, "batch": a.base_batch}
        sizes |= {"levels": "flat", axis: value}
        heads = max(sizes["width"] // 64, 1)
        encoder = {
            "embed_dim": sizes["width"], "depth": sizes["depth"], "num_heads": heads, "patch_size": sizes["patch"],
            "img_size": sizes["image side"],
        }  # fmt: skip
        self.views = 2 if sizes["levels"] == "three" else 1
        rest: dict[str, Any] = {"levels": LEVELS[sizes["levels"]]}
        if axis == "views":
            self.views, rest = value, {"levels": IMAGE}
        else:
            rest["predictor"] = {"embed_dim": 192, "depth": 4, "num_heads": 3}
        torch.manual_seed(0)
        self.module = HJEPALightningModule(encoder=encoder, **rest).train().to(a.device)
        self.optimizer = self.module.configure_optimizers()
        self.images = torch.randn(sizes["batch"], 3, sizes["image side"], sizes["image side"], device=a.device)
        self.seconds: list[float] = []
        with FlopCounterMode(display=False) as counter:
            timed_step(self.module, self.optimizer, self._batch(), self.bf16)
        self.flops = counter.get_total_flops()

    def _batch(self) -> Any:
        # One number for all steps, and so one shape of the masks.
        return make_batch(self.images, 0, self.views)

    def step(self) -> None:
        """Make and time a step."""
        self.seconds.append(timed_step(self.module, self.optimizer, self._batch(), self.bf16))

    def row(self) -> dict[str, Any]:
        """Return what was measured."""
        seconds = statistics.median(self.seconds)
        images = len(self.images)
        return {
            "axis": self.axis, "value": self.value, "ms": round(seconds * 1e3, 2), "images_per_s": images / seconds,
            "gflop_per_image": self.flops / images / 1e9, "gflop_per_s": self.flops / seconds / 1e9,
        }  # fmt: skip


def slope(rows: list[dict[str, Any]], key: str) -> float:
    """Return the exponent with which a figure grows from the first row to the last."""
    return math.log(rows[-1][key] / rows[0][key]) / math.log(rows[-1]["value"] / rows[0]["value"])


def draw(found: dict[str, list[dict[str, Any]]], title: str, path: str) -> None:
    """Draw milliseconds over each size, beside what the FLOPs alone would make of the first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(14, 6.5), layout="constrained")
    for ax, (name, rows) in zip(axes.flat, found.items(), strict=False):
        values, ms = [r["value"] for r in rows], [r["ms"] for r in rows]
        flops = [r["gflop_per_s"] * r["ms"] for r in rows]  # MFLOP a step
        by_flops = [ms[0] * f / flops[0] for f in flops]
        if name == "levels":
            ax.bar([v.replace(" ", "\n", 1) for v in values], ms, color="tab:blue")
        else:
            ax.plot(values, ms, "o-", label="measured")
            ax.plot(values, by_flops, "--", color="gray", label="as the FLOPs grow")
            ax.set(xscale="log", yscale="log")
            ax.set_xticks(values, [str(v) for v in values], minor=False)
            ax.set_yticks(ms, [f"{v:.0f}" for v in ms])
            ax.minorticks_off()
            ax.legend(frameon=False)
        ax.set(title=name, ylabel="ms a step")
        ax.grid(alpha=0.3)
    axes.flat[-1].axis("off")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure all variants, axis by axis, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--base-side", type=int, default=224)
    parser.add_argument("--base-width", type=int, default=192)
    parser.add_argument("--base-batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", required=True)
    a = parser.parse_args()
    if a.device == "cpu":
        keep_freed_memory()  # as a run does
    found: dict[str, list[dict[str, Any]]] = {}
    for axis, values in AXES.items():
        variants = [Variant(a, axis, value) for value in values]
        for _ in range(a.rounds + 1):
            for variant in variants:
                variant.step()
        for variant in variants:
            del variant.seconds[0]
        found[axis] = [variant.row() for variant in variants]
        numeric = axis != "levels"
        print(f"\n{axis:>18s} | ms a step | images/s | GFLOP an image | GFLOP/s")
        for r in found[axis]:
            figures = (
                f"{r['ms']:9.0f} | {r['images_per_s']:8.1f} | {r['gflop_per_image']:14.2f} | {r['gflop_per_s']:7.0f}"
            )
            print(f"{r['value']:>18} | {figures}")
        if numeric:
            per_step = [{**r, "flop": r["gflop_per_s"] * r["ms"]} for r in found[axis]]
            print(
                f"exponent: {slope(per_step, 'ms'):.2f} of the time, {slope(per_step, 'flop'):.2f} of the FLOPs",
                flush=True,
            )
    title = (
        f"Training step, base: width {a.base_width}, depth 12, patch 16, {a.base_side} pixels, batch {a.base_batch}, "
        f"one token level, predictor 192 x 4, {'bf16' if a.bf16 else 'fp32'}, {a.device}, "
        f"{torch.get_num_threads()} threads"
    )
    with open(f"{a.out}.json", "w") as file:
        json.dump({"title": title, "torch": torch.__version__, "axes": found}, file, indent=1)
    draw(found, title, f"{a.out}.png")


if __name__ == "__main__":
    main()
