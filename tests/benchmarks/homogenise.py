#!/usr/bin/env python3
"""Do token levels make all tokens of an image equal, and does a coarser cell teach anything that the finer does not?

    OMP_NUM_THREADS=1 python tests/benchmarks/homogenise.py --cifar10 FOLDER --out tests/benchmarks/homogenise_cpu.jsonl
    python tests/benchmarks/homogenise.py --table --out tests/benchmarks/homogenise_cpu.jsonl

Every 20 steps, per token level: how the targets' power is shared out (a constant; what depends on the position alone;
on the image alone; on both), the monitor's `image_share` and ranks, and, where there are two token levels or more, the
cosine between the gradients that the first and each other level give the context encoder on the same batch. Each arm is
a real Trainer run of 400 steps on one thread: the model of `ablation.py` on CIFAR-10 (a folder with train/ and test/),
or an embedded config. Arms that are in the file already are not run again.
"""

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from ablation import read, write
from torch import Tensor

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.callbacks.collapse_monitor import CollapseMonitor
from hjepa_pl.callbacks.probe_callback import ProbeCallback
from hjepa_pl.evaluation import image_share
from hjepa_pl.objectives.record import StepRecord

EVERY = 20
IMAGE, FLAT = {"cell": "image"}, [{"cell": 1}]
SMALL: dict[str, Any] = {
    "encoder": {"embed_dim": 64, "depth": 4, "num_heads": 2, "patch_size": 4, "img_size": 32, "drop_path_rate": 0.0},
    "predictor": {"embed_dim": 64, "depth": 2, "num_heads": 2},
    "ema": {"momentum": 0.99},
    "optimizer": {"lr": 2e-3},
}
PROJECTOR = {"projector": {"hidden_dim": 256, "out_dim": 32}}
ARMS: dict[str, dict[str, Any] | str] = {
    "flat": {"levels": "flat"},
    "three": {"levels": "three", **PROJECTOR},
    "cell 1 + image": {"levels": [*FLAT, IMAGE], **PROJECTOR},
    "quickstart": "configs/quickstart.yaml",
    "digits_canvas": "configs/digits_canvas.yaml",
}  # fmt: skip


def shares(target_map: Tensor) -> dict[str, float]:
    """Return which share of the mean square of (B, cells, D) each part of a two-way layout has; they sum to 1."""
    x = target_map.double()
    constant, position, image = x.mean((0, 1), keepdim=True), x.mean(0, keepdim=True), x.mean(1, keepdim=True)
    parts = {
        "constant": constant, "position": position - constant, "image": image - constant,
        "local": x - position - image + constant,
    }  # fmt: skip
    return {name: round(float(part.square().mean() / x.square().mean()), 4) for name, part in parts.items()}


def cosines(module: HJEPALightningModule, batch: Any) -> dict[str, float]:
    """Return the cosine of the gradients, on the context encoder, of the first token level and of each other one."""
    assert module.masks is not None
    assert module.tokens is not None
    record = StepRecord()
    module.tokens.predict(batch.views[0], module.masks(batch.counters), module.crops.encode(batch), record)
    weights = [p for p in module.context_encoder.parameters() if p.requires_grad]
    found = {}
    for name in record.levels:
        grads = torch.autograd.grad(record.terms[name], weights, retain_graph=True, allow_unused=True)
        found[name] = torch.cat([g.flatten() for g in grads if g is not None])
    first, *others = found
    return {o: round(torch.cosine_similarity(found[first], found[o], dim=0).item(), 4) for o in others}


class Watch(pl.Callback):
    """Keeps a line for every check."""

    def __init__(self, monitor: CollapseMonitor) -> None:
        self.monitor, self.lines, self.cosine = monitor, [], {}  # type: ignore[var-annotated]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.global_step + 1) % EVERY == 0 and len(pl_module.token_levels) > 1:
            self.cosine = cosines(pl_module, batch)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % EVERY:
            return
        maps = {name: state.target_map for name, state in outputs["levels"].items()}
        ranks = {k.split("/", 1)[1]: round(v, 2) for k, v in self.monitor.metrics.items() if k.endswith("rank")}
        self.lines.append({
            "step": trainer.global_step, "parts": {name: shares(x) for name, x in maps.items()},
            "image_share": {name: round(image_share(x).item(), 4) for name, x in maps.items()},
            "cosine": self.cosine, "rank": ranks, "status": self.monitor.status,
        })  # fmt: skip


def make(arm: dict[str, Any] | str, cifar10: str, seed: int) -> tuple[HJEPALightningModule, MultiDatasetDataModule]:
    """Return an arm's module and data."""
    if isinstance(arm, str):
        config = yaml.safe_load(Path(arm).read_text())
        model, data = config["model"]["init_args"], config["data"]["init_args"]
    else:
        model = {**SMALL, **arm}
        probe = {"name": "folder", "root": cifar10, "title": "cifar10", "max_train": 4000, "max_test": 4000}
        views = 2 if IMAGE["cell"] in str(arm["levels"]) or arm["levels"] == "three" else 1
        data = {"datasets": [{"name": "folder", "root": cifar10}], "probe": [probe], "batch_size": 64, "views": views}
    return HJEPALightningModule(**model, seed=seed), MultiDatasetDataModule(**data, seed=seed)


def run(args: argparse.Namespace, name: str) -> None:
    """Train one arm and write its lines."""
    torch.set_num_threads(1)
    pl.seed_everything(args.seed, verbose=False)
    module, data = make(ARMS[name], args.cifar10, args.seed)
    monitor, probes, began = CollapseMonitor(), ProbeCallback(), time.time()
    watch = Watch(monitor)
    trainer = pl.Trainer(
        accelerator="cpu", precision="bf16-mixed", max_steps=args.steps, max_epochs=-1, gradient_clip_val=3.0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, check_val_every_n_epoch=10**6, callbacks=[monitor, watch, probes],
    )  # fmt: skip
    trainer.fit(module, data)
    for line in watch.lines:
        write(args.out, {"arm": name, "seed": args.seed, **line})
    figures = {key.removeprefix("probe/"): float(f"{value:.4g}") for key, value in probes.results.items()}
    write(
        args.out,
        {"arm": name, "seed": args.seed, "took": round(time.time() - began), "verdict": monitor.message, **figures},
    )


def table(path: Path) -> None:
    """Print, for each arm and level, the last check, the step at which the monitor turned red, and the cosines."""
    print("| arm | level | constant / position / image / local | image share: most, last | rank | red at |", end="")
    print(" cosine | k-NN / linear |\n|---|---|---|---|---|---|---|---|")
    for name, seed in dict.fromkeys((line["arm"], line["seed"]) for line in read(path)):
        lines = [line for line in read(path) if (line["arm"], line["seed"]) == (name, seed)]
        checks, end = [line for line in lines if "step" in line], next(line for line in lines if "took" in line)
        red = next((line["step"] for line in checks if line["status"] == "red"), "-")
        probes = " / ".join(f"{v:.1f}" for k, v in end.items() if k.endswith(("/knn_online", "/linear_online")))
        for level, parts in checks[-1]["parts"].items():
            rank = checks[-1]["rank"].get(f"{level}/rank", float("nan"))
            share = f"{max(line['image_share'][level] for line in checks):.2f}, {checks[-1]['image_share'][level]:.2f}"
            found = sorted(line["cosine"][level] for line in checks if level in line["cosine"])
            cosine = f"{found[0]:.3f} to {found[-1]:.3f}" if found else "-"
            power = " / ".join(f"{v:.2f}" for v in parts.values())
            print(f"| {name}, {seed} | {level} | {power} | {share} | {rank:.1f} | {red} | {cosine} | {probes} |")


def main() -> None:
    """Run the arms, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cifar10", help="folder with train/ and test/")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers|.*num_workers|.*LeafSpec|.*in eval mode")
    done = {(line["arm"], line["seed"]) for line in read(args.out) if "took" in line}
    if args.table:
        return table(args.out)
    for name in args.arms:
        if (name, args.seed) not in done:
            run(args, name)
    return None


if __name__ == "__main__":
    main()
