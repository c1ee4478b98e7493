#!/usr/bin/env python3
"""Learning by the second: what a small encoder knows after equal computing time on one thread.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/learning.py run --cifar10 FOLDER --out learning.jsonl
    python tests/benchmarks/learning.py table --out learning.jsonl

Each run is a real Trainer run of the same encoder (width 64, depth 4, patch 4, 32 pixels) on CIFAR-10 (a folder with
train/ and test/), batch 64, bf16. The step of an arm is timed first, in seconds of the process; the arm then gets
`--seconds` / (its median step) steps, data and augmentation included. One protocol evaluates every encoder, ours and
those of other libraries: mean of the patch tokens of clean images; logistic regression on standardized features of
1,000 training images a class, cosine k-NN (k 20) on the same. Arms are compared on validation images (400 others of
each class of the training split); the test split is only reported. Runs that are in the file already are not repeated.
"""

import argparse
import logging
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from ablation import StepTimes, read, spread, write
from PIL import Image
from sklearn.linear_model import LogisticRegression
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.models.base import Encoder

ENCODER = {"embed_dim": 64, "depth": 4, "num_heads": 4, "patch_size": 4, "img_size": 32}
PREDICTOR = {"predictor": {"embed_dim": 64, "depth": 2, "num_heads": 2}}
PROJECTOR = {"projector": {"hidden_dim": 256, "out_dim": 32}}
NTXENT = {**PROJECTOR, "regularizers": [{"kind": "ntxent", "weight": 1.0, "temperature": 0.2}]}
SHARP = {**PROJECTOR, "regularizers": [{"kind": "ntxent", "weight": 1.0, "temperature": 0.1}]}
ADAMW, MUON = {"optimizer": {"lr": 2e-3}}, {"optimizer": {"lr": 4e-3, "kind": "muon"}}
HALF = {"cell": "image", "compare": "none", "keep": 0.5}
INNER = {"block": 2, "cell": "image", "weight": 0.5}
RAMP = {"ema": {"momentum": 0.996, "momentum_end": 1.0}}
TARGETS = {"target_norm": "instance", "target_blocks": 2, **RAMP, **PREDICTOR}
PATCHES = {"cell": 1, "weight": 0.5}
CHEAP = {
    "target_norm": "instance", "target_blocks": 2, **RAMP, "masks": {"kind": "random", "ratio": 0.5},
    "predictor": {"embed_dim": 64, "depth": 1, "num_heads": 2, "attention": "cross"},
}  # fmt: skip

ARMS: dict[str, dict[str, Any]] = {
    "untrained": {"levels": [{"cell": "image"}], **PROJECTOR},
    "LeJEPA, AdamW": {"levels": [{"cell": "image"}], **PROJECTOR, **ADAMW},
    "NT-Xent, AdamW": {"levels": [{"cell": "image", "compare": "none"}], **NTXENT, **ADAMW},
    "NT-Xent, AdamW, keep .5": {"levels": [HALF], **NTXENT, **ADAMW},
    "NT-Xent, Muon": {"levels": [{"cell": "image", "compare": "none"}], **NTXENT, **MUON},
    "NT-Xent, Muon, keep .5": {"levels": [HALF], **NTXENT, **MUON},
    "NT-Xent, Muon, keep .5, level at block 2": {"levels": [INNER, HALF], **NTXENT, **MUON},
    "NT-Xent at .1, Muon, keep .5, level at block 2": {"levels": [INNER, HALF], **SHARP, **MUON},
    "LeJEPA, Muon, keep .5": {"levels": [{"cell": "image", "keep": 0.5}], **PROJECTOR, **MUON},
    "LeJEPA, Muon, keep .5, level at block 2": {"levels": [INNER, {"cell": "image", "keep": 0.5}], **PROJECTOR, **MUON},
    "I-JEPA, AdamW": {"levels": "flat", **RAMP, **PREDICTOR, **ADAMW},
    "I-JEPA, AdamW, instance norm of 2 blocks": {"levels": "flat", **TARGETS, **ADAMW},
    "I-JEPA, Muon, instance norm of 2 blocks": {"levels": "flat", **TARGETS, **MUON},
    "patches and image, Muon, keep .5": {
        "levels": [{"cell": 1, "weight": 0.5}, {**HALF, "masked_view": "replace"}], **TARGETS, **NTXENT, **MUON,
    },
    "hidden patches and image, Muon": {
        "levels": [PATCHES, {**HALF, "masked_view": "replace"}], **CHEAP, **NTXENT, **MUON,
    },
    "hidden patches, block 2 and image, Muon": {
        "levels": [PATCHES, INNER, {**HALF, "masked_view": "replace"}], **CHEAP, **NTXENT, **MUON,
    },
    "patches, block 2 and image, Muon, keep .5": {
        "levels": [{"cell": 1, "weight": 0.1}, INNER, {**HALF, "masked_view": "replace"}], **TARGETS, **NTXENT, **MUON,
    },
}  # fmt: skip


def fit(args: argparse.Namespace, arm: dict[str, Any], seed: int, steps: int) -> tuple[HJEPALightningModule, StepTimes]:
    """Train an arm for a number of steps."""
    pl.seed_everything(seed, verbose=False)
    module = HJEPALightningModule(encoder=ENCODER, seed=seed, **arm)
    views = 1 if arm["levels"] == "flat" else 2
    data = MultiDatasetDataModule(
        datasets=[{"name": "folder", "root": args.cifar10}], batch_size=64, views=views, seed=seed
    )
    times = StepTimes(time.process_time)  # of this process, whatever else the machine does
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, precision="bf16-mixed", max_steps=steps, max_epochs=-1, gradient_clip_val=3.0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=0, callbacks=[times],
    )  # fmt: skip
    if steps:
        trainer.fit(module, data)
    return module.eval(), times


def images_of(folder: Path, split: str, first: int, last: int) -> tuple[Tensor, np.ndarray]:
    """Return images number `first` to `last` of each class, (N, 3, 32, 32) uint8, and their labels."""
    images, labels = [], []
    for label, place in enumerate(sorted(p for p in (folder / split).iterdir() if p.is_dir())):
        for file in sorted(place.iterdir())[first:last]:
            images.append(np.asarray(Image.open(file).convert("RGB")))
            labels.append(label)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), np.array(labels)


@torch.inference_mode()
def features(encoder: Encoder, images: Tensor) -> Tensor:
    """Return the mean of the patch tokens, (N, D)."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return torch.cat([encoder((x.float() / 255 - mean) / std)["last"].mean(dim=1) for x in images.split(500)])


def evaluate(encoder: Encoder, sets: dict[str, tuple[Tensor, np.ndarray]]) -> dict[str, float]:
    """Return linear and k-NN accuracy, in percent, on each set but the first, `train`."""
    (train, labels), found = sets["train"], {}
    bank = features(encoder, train)
    mean, std = bank.mean(dim=0), bank.std(dim=0) + 1e-8
    x = ((bank - mean) / std).numpy()
    order = np.random.RandomState(0).permutation(len(x))
    fold, rest = order[: len(x) // 5], order[len(x) // 5 :]
    scores = {c: LogisticRegression(C=c, max_iter=200).fit(x[rest], labels[rest]).score(x[fold], labels[fold])
              for c in (0.003, 0.03, 0.3, 3.0)}  # fmt: skip
    model = LogisticRegression(C=max(scores, key=lambda c: scores[c]), max_iter=300).fit(x, labels)
    for name, (images, truth) in sets.items():
        if name != "train":
            rows = features(encoder, images)
            found[f"{name}_linear"] = model.score(((rows - mean) / std).numpy(), truth)
            near = (F.normalize(rows) @ F.normalize(bank).T).topk(20).indices
            votes = F.one_hot(torch.from_numpy(labels)[near], int(labels.max()) + 1).sum(dim=1)
            found[f"{name}_knn"] = float((votes.argmax(dim=1).numpy() == truth).mean())
    return {name: round(100 * value, 2) for name, value in found.items()}


def run(args: argparse.Namespace) -> None:
    """Make every run that is not in the file, all arms at one seed before the next."""
    folder = Path(args.cifar10)
    sets = {
        "train": images_of(folder, "train", 0, 1000), "val": images_of(folder, "train", 1000, 1400),
        "test": images_of(folder, "test", 0, 1000),
    }  # fmt: skip
    for seed in args.seeds:
        for name in args.arms:
            if any(
                (line["arm"], line["seed"], line["seconds"]) == (name, seed, args.seconds) for line in read(args.out)
            ):
                continue
            arm, steps = ARMS[name], 0
            if name != "untrained":
                step = statistics.median(fit(args, arm, seed, 40)[1].steps[10:])
                steps = max(10, round(args.seconds / step))
            module, times = fit(args, arm, seed, steps)
            line = {"arm": name, "seed": seed, "seconds": args.seconds, "steps": steps,
                    "cpu_seconds": round(sum(times.steps), 1),
                    "online": evaluate(module.context_encoder, sets)}  # fmt: skip
            if module.target_encoder is not None:
                line["target"] = evaluate(module.target_encoder, sets)
            write(args.out, line)


def table(args: argparse.Namespace) -> None:
    """Print mean and standard deviation over the seeds, of the network that is better on validation images."""
    print("| arm | seeds | steps | images/s | network | validation: linear / k-NN | test: linear / k-NN |")
    print("|---" * 7 + "|")
    for name in dict.fromkeys(line["arm"] for line in read(args.out)):
        runs = [line for line in read(args.out) if line["arm"] == name and line["seconds"] == args.seconds]
        if not runs:
            continue
        networks = [n for n in ("online", "target") if all(n in run for run in runs)]
        best = max(networks, key=lambda n: statistics.mean(run[n]["val_linear"] for run in runs))
        cells = [" / ".join(spread([run[best][f"{split}_{kind}"] for run in runs]) for kind in ("linear", "knn"))
                 for split in ("val", "test")]  # fmt: skip
        speed = statistics.mean(64 * run["steps"] / run["cpu_seconds"] for run in runs) if runs[0]["steps"] else 0
        print(f"| {name} | {len(runs)} | {runs[0]['steps']} | {speed:.0f} | {best} | {' | '.join(cells)} |")


def main() -> None:
    """Run or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--out", type=Path, required=True, help="the file of results, a JSON object per line")
    parser.add_argument("--cifar10", help="folder with train/ and test/")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=200.0, help="computing time of a run, on one thread")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*num_workers|.*does not have many workers.*|.*LeafSpec|.*in eval mode")
    torch.set_num_threads(1)
    {"run": run, "table": table}[args.command](args)


if __name__ == "__main__":
    main()
