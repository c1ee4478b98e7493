#!/usr/bin/env python3
"""Which label-free metric of held-out images ranks runs as a linear probe does?

    OMP_NUM_THREADS=1 python tests/benchmarks/signals.py --cifar10 FOLDER --out signals.jsonl
    python tests/benchmarks/signals.py --table --out signals.jsonl

Each arm is a real Trainer run of 0 to 200 steps. Arms differ in levels, regularizer, its weight, steps or learning
rate: a ViT of width 64 and depth 4, patch 4, on CIFAR-10 (a folder with train/ and test/), batch 64, bf16.
1 % of its training images are held out (`data.holdout`). One validation at the end gives their metrics and the probe's;
of the probe's the validation accuracy (`linear_val`) is used, as the table serves to choose a metric. `--table` prints
Spearman's rank correlation of each metric with it over all arms, and over those of the image level with SIGReg alone,
which have one objective. A metric that is better when smaller is negated, alpha_req is its gap. Arms that are in the
file already are not run again.
"""

import argparse
import logging
import math
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from ablation import read, write
from scipy.stats import spearmanr

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.callbacks import HeldOutMetrics, ProbeCallback

FLAT, IMAGE = [{"cell": 1}], [{"cell": "image"}]
BOTH = [{"cell": 1}, {"cell": "image"}]
CONTRAST = [{"cell": "image", "compare": "none"}]


def sigreg(weight: float) -> dict[str, Any]:
    """Return the image level alone with this weight of SIGReg (the default is 5)."""
    return {"levels": IMAGE, "regularizers": [{"kind": "sigreg", "weight": weight}]}


ARMS: dict[str, dict[str, Any]] = {
    "LeJEPA, 200 steps": {**sigreg(5.0), "steps": 200},
    "flat, 150 steps": {"levels": FLAT, "steps": 150},
    "cell 1 + image": {"levels": BOTH, "steps": 60},
    "untrained": {**sigreg(5.0), "steps": 0},
    "LeJEPA, 60 steps": {**sigreg(5.0), "steps": 60},
    "LeJEPA, weight 0.05": {**sigreg(0.05), "steps": 60},
    "NT-Xent": {"levels": CONTRAST, "regularizers": [{"kind": "ntxent"}], "steps": 60},
    "three": {"levels": "three", "steps": 60},
    "LeJEPA, weight 100": {**sigreg(100.0), "steps": 60},
    "LeJEPA, lr 1e-4": {**sigreg(5.0), "steps": 60, "lr": 1e-4},
    "flat, SIGReg on tokens": {"levels": FLAT, "regularizers": [{"kind": "sigreg", "stream": "tokens"}], "steps": 60},
    "flat, 30 steps": {"levels": FLAT, "steps": 30},
    "LeJEPA, lr 2e-2": {**sigreg(5.0), "steps": 60, "lr": 2e-2},
    "VICReg": {"levels": IMAGE, "regularizers": [{"kind": "vicreg", "weight": 0.04}], "steps": 60},
}
ONE_OBJECTIVE = [name for name in ARMS if name.startswith("LeJEPA") or name == "untrained"]
SMALLER = ("val/alpha_req_gap", "val/loss")
"""Metrics that are better when smaller."""
METRICS = ("val/rankme", "val/lidar", "val/alpha_req_gap", "val/loss")


def model_of(arm: dict[str, Any], seed: int) -> HJEPALightningModule:
    """Make an arm's module, with networks for its levels only."""
    cells = [1, 2, "image"] if arm["levels"] == "three" else [level["cell"] for level in arm["levels"]]
    parts: dict[str, Any] = {"regularizers": arm["regularizers"]} if "regularizers" in arm else {}
    if cells != ["image"]:
        parts |= {"predictor": {"embed_dim": 64, "depth": 2, "num_heads": 2}, "ema": {"momentum": 0.99}}
    if "image" in cells:
        parts["projector"] = {"hidden_dim": 256, "out_dim": 32}
    return HJEPALightningModule(
        encoder={"embed_dim": 64, "depth": 4, "num_heads": 2, "patch_size": 4, "img_size": 32},
        levels=arm["levels"], optimizer={"lr": arm.get("lr", 2e-3), "warmup_epochs": 0}, seed=seed, **parts,
    )  # fmt: skip


def run(args: argparse.Namespace, name: str) -> None:
    """Train an arm, validate it once, and write its line."""
    arm, began = ARMS[name], time.time()
    pl.seed_everything(args.seed, verbose=False)
    folder = {"name": "folder", "root": args.cifar10}
    data = MultiDatasetDataModule(
        datasets=[folder], probe=[{**folder, "title": "cifar10", "max_train": args.bank, "max_test": 100}],
        batch_size=64, views=1 if arm["levels"] == FLAT else 2, holdout=0.01, num_workers=0, seed=args.seed,
    )  # fmt: skip
    model = model_of(arm, args.seed)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, precision="bf16-mixed", max_steps=arm["steps"] or 1, max_epochs=-1,
        gradient_clip_val=3.0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0 if arm["steps"] else 1.0,
        callbacks=[HeldOutMetrics(), ProbeCallback(networks=("target", "online"))],
    )  # fmt: skip
    if arm["steps"]:
        trainer.fit(model, data)
        trainer.limit_val_batches = 1.0
    trained = time.time()
    found: dict[str, float] = {}
    for of_loader in trainer.validate(model, data, verbose=False):
        found |= of_loader
    took = {"train_seconds": round(trained - began), "validation_seconds": round(time.time() - trained)}
    figures = {key: float(f"{value:.5g}") for key, value in found.items() if not key.endswith("_weighted")}
    write(args.out, {"arm": name, "seed": args.seed, "steps": arm["steps"], **took, **figures})


def table(path: Path) -> None:
    """Print the runs and the rank correlations as Markdown."""
    lines, probe = read(path), "probe/cifar10/linear_val"
    print(f"| run | linear_val | {' | '.join(m.removeprefix('val/') for m in (*METRICS, 'val/alpha_req'))} |")
    print("|---" * (3 + len(METRICS)) + "|")
    for line in sorted(lines, key=lambda line: -line[probe]):
        cells = [f"{line[m]:.3g}" if m in line else "-" for m in (*METRICS, "val/alpha_req")]
        print(f"| {line['arm']} | {line[probe]:.1f} | {' | '.join(cells)} |")
    print("\n| metric | all runs | one objective (image level, SIGReg) |\n|---|---|---|")
    for metric in METRICS:
        sign = -1 if metric in SMALLER else 1
        cells = []
        for chosen in (list(ARMS), ONE_OBJECTIVE):
            pairs = [(sign * x[metric], x[probe]) for x in lines if x["arm"] in chosen and math.isfinite(x[metric])]
            rank = spearmanr(*zip(*pairs, strict=True)) if len(pairs) > 2 else None
            cells.append("-" if rank is None else f"{rank.statistic:+.2f} (n {len(pairs)}, p {rank.pvalue:.2g})")
        print(f"| {metric} | {' | '.join(cells)} |")


def main() -> None:
    """Run the arms that are missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the file of results, a JSON object a line")
    parser.add_argument("--cifar10", help="folder with train/ and test/")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--bank", type=int, default=4000, help="images of the probe's training split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        table(args.out)
        return
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*num_workers|.*does not have many workers|.*in eval mode|.*LeafSpec")
    done = {(line["arm"], line["seed"]) for line in read(args.out)}
    for name in args.arms:
        if (name, args.seed) not in done:
            run(args, name)


if __name__ == "__main__":
    main()
