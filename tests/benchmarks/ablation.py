#!/usr/bin/env python3
"""Which parts pay: one small model, one change an arm, equal computing time, several seeds.

    uv run python tests/benchmarks/ablation.py run --cifar10 CIFAR_FOLDER --tiny TINY_FOLDER --out ablation.jsonl
    uv run python tests/benchmarks/ablation.py table --out ablation.jsonl
    uv run python tests/benchmarks/ablation.py run --study objectives --cifar10 CIFAR_FOLDER --out objectives.jsonl

First the step of every arm is measured, all arms taking turns: the lower quartile of its times, as a busy machine only
adds to them; arms that differ in weights only are one. An arm then gets `--seconds` / (its step) steps: equal computing
time, the same steps for every seed whatever else the machine does meanwhile. Each run is a real Trainer run on CIFAR-10
and Tiny-ImageNet (folders with train/ and test/ or val/, mixed 0.7 / 0.3), or one of them, judged on them by k-NN and
linear probe. An arm is chosen by the mean of its validation metrics (images held out of the bank: the line under the
table); what is reported of it is measured on the test split. The arms are in `arms.py`: those of the levels
(`--study levels`, the default) or of the objectives. Runs that are in the file already are not made again.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from arms import STUDIES

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.callbacks.probe_callback import ProbeCallback
from hjepa_pl.evaluation.probes import PROBES, VAL

REFERENCE = {"levels": "three pooled levels", "objectives": "LeJEPA"}
"""The arm that ties measurements of different days to one another."""


def model_of(args: argparse.Namespace, arm: dict[str, Any], seed: int) -> HJEPALightningModule:
    """Make an arm's module: the base, with the arm's keys over it."""
    base: dict[str, Any] = {
        "encoder": {
            "embed_dim": args.width, "depth": args.depth, "num_heads": max(1, args.width // 32),
            "patch_size": args.patch, "img_size": args.img, "drop_path_rate": args.drop_path,
        },
        "optimizer": {"lr": args.lr},
        "seed": seed,
    }  # fmt: skip
    parts: dict[str, dict[str, Any]] = {
        "predictor": {"embed_dim": args.predictor_width, "depth": 2, "num_heads": max(1, args.predictor_width // 32)},
        "ema": {"momentum": args.momentum},
        "projector": {"hidden_dim": args.projector, "out_dim": 32},
    }
    arm = {key: value for key, value in arm.items() if key != "data"}
    cells = [level["cell"] for level in arm["levels"]]
    kept = [k for k in parts if ("image" in cells if k == "projector" else cells != ["image"])]
    for key, value in {**base, **{k: parts[k] for k in kept}}.items():
        base[key] = {**value, **arm.get(key, {})} if isinstance(value, dict) else value
    return HJEPALightningModule(**{**arm, **base})


def data_of(args: argparse.Namespace, arm: dict[str, Any], seed: int) -> MultiDatasetDataModule:
    """Make the mixture and the probe sets, with the number of views that the arm needs."""
    roots = {"cifar10": (args.cifar10, 0.7), "tiny": (args.tiny, 0.3)}
    given = {name: place for name, place in roots.items() if place[0] is not None}
    bank = {"max_train": args.bank, "max_test": args.bank}
    whole = len(given) == 1
    return MultiDatasetDataModule(
        datasets=[{"name": "folder", "root": r, **({} if whole else {"weight": w})} for r, w in given.values()],
        probe=[{"name": "folder", "root": root, "title": name, **bank} for name, (root, _) in given.items()],
        batch_size=args.batch,
        num_workers=args.workers,
        seed=seed,
        **{"views": 2 if "image" in [level["cell"] for level in arm["levels"]] else 1, **arm.get("data", {})},
    )


class StepTimes(pl.Callback):
    """Seconds between the ends of batches: data, step and loop.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(self.clock())

    @property
    def steps(self) -> list[float]:
        """Return the seconds of each step but the first."""
        return [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]


def fit(args: argparse.Namespace, arm: dict[str, Any], seed: int, steps: int, probe: bool) -> tuple[dict, list[float]]:
    """Train for a number of steps, perhaps none; return the probes' figures and the seconds of each step."""
    pl.seed_everything(seed, verbose=False)
    model, data, times = model_of(args, arm, seed), data_of(args, arm, seed), StepTimes()
    probes = ProbeCallback(networks=("target", "online"))
    trainer = pl.Trainer(
        accelerator=args.accelerator, devices=1, precision=args.precision, max_steps=steps, max_epochs=-1,
        gradient_clip_val=3.0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=1.0 if probe else 0,
        check_val_every_n_epoch=10**6, callbacks=[times, *([probes] if probe else [])],
    )  # fmt: skip
    if steps:
        trainer.fit(model, data)
    else:
        trainer.validate(model, data, verbose=False)
    figures = {k.removeprefix("probe/"): float(f"{v:.4g}") for k, v in probes.results.items()}
    return figures, times.steps


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of the file, none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write(path: Path, line: dict[str, Any]) -> None:
    """Append a line."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def computation(arm: dict[str, Any]) -> str:
    """Return what tells whether two arms compute the same: all but weights and scales."""
    levels = [{k: v for k, v in level.items() if k != "weight"} for level in arm["levels"]]
    return json.dumps({**{k: v for k, v in arm.items() if k != "level_scale"}, "levels": levels}, sort_keys=True)


def measure(args: argparse.Namespace, chosen: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of a step of every arm, from rounds in which all take their turn."""
    known = {line["computation"]: line["step"] for line in read(args.out) if line["kind"] == "step"}
    missing = {c: arm for arm in chosen.values() if (c := computation(arm)) not in known}
    times: dict[str, list[float]] = {c: [] for c in missing}
    reference = REFERENCE[args.study]
    if known and missing:  # arms measured on another day are tied to the first by an arm that both have
        times[computation(STUDIES[args.study](args.depth)[reference])] = []
    for _ in range(args.rounds):
        for name in times:
            arm = missing.get(name, STUDIES[args.study](args.depth)[reference])
            times[name] += fit(args, arm, 0, 10, probe=False)[1][2:]
    quartile = {name: statistics.quantiles(found, n=4)[0] for name, found in times.items()}
    tie = computation(STUDIES[args.study](args.depth)[reference])
    scale = known[tie] / quartile[tie] if tie in known and missing else 1.0
    for name in missing:
        known[name] = scale * quartile[name]
        write(args.out, {"kind": "step", "computation": name, "step": round(known[name], 5)})
    return {name: known[computation(arm)] for name, arm in chosen.items()}


def run(args: argparse.Namespace) -> None:
    """Make every run that is not in the file: all arms at one seed before the next."""
    known = STUDIES[args.study](args.depth)
    chosen = {name: known[name] for name in args.arms or known}
    step = measure(args, chosen)
    for seed in args.seeds:
        for name, arm in chosen.items():
            if any(k["kind"] == "run" and (k["arm"], k["seed"]) == (name, seed) for k in read(args.out)):
                continue
            count, began = 0 if name == "untrained" else max(10, round(args.seconds / step[name])), time.time()
            figures, _ = fit(args, arm, seed, count, probe=True)
            took = round(time.time() - began)
            write(args.out, {"kind": "run", "arm": name, "seed": seed, "steps": count, "took": took, **figures})


def steps(args: argparse.Namespace) -> None:
    """Measure the steps only, for a moment in which nothing else runs."""
    measure(args, STUDIES[args.study](args.depth))


def table(args: argparse.Namespace) -> None:
    """Print mean and standard deviation over the seeds of every arm, as Markdown, and the arm that is best.

    The columns are the test metrics and their mean; then the mean of the validation metrics, by which the best is
    chosen, where the runs have them.
    """
    lines = read(args.out)
    step = {line["computation"]: line["step"] for line in lines if line["kind"] == "step"}
    keys = sorted({key for line in lines if line["kind"] == "run" for key in line})
    figures = [key for key in keys if key.endswith(tuple(f"/{name}" for name in PROBES))]  # of the judged network
    validation = [f"{key}_{VAL}" for key in figures if f"{key}_{VAL}" in keys]
    print(f"| arm | seeds | step, ms | steps | {' | '.join(figures)} | mean | validation |")
    print("|---" * (6 + len(figures)) + "|")
    chosen: dict[str, float] = {}
    for name, arm in STUDIES[args.study](args.depth).items():
        runs = [line for line in lines if line["kind"] == "run" and line["arm"] == name]
        if not runs:
            continue
        cells = [spread([r[f] for r in runs]) for f in figures]
        mean = spread([statistics.mean(r[f] for f in figures) for r in runs])
        held = [statistics.mean(r[f] for f in validation) for r in runs if validation and {*validation} <= {*r}]
        if held:
            chosen[name] = statistics.mean(held)
        head = f"| {name} | {len(runs)} | {step[computation(arm)] * 1e3:.0f} | {runs[0]['steps']} |"
        print(head, " | ".join([*cells, mean, spread(held) if held else "-"]), "|")
    if chosen:
        print(f"\nBest by validation: {max(chosen, key=lambda name: chosen[name])}.")
    else:
        print("\nThese runs have no validation metrics: no arm can be chosen by them.")


def spread(values: list[float]) -> str:
    """Return the mean, with the standard deviation if there are several values."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def parse() -> argparse.Namespace:
    """Read the command line; the defaults are the sizes for one CPU core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("steps", "run", "table"))
    parser.add_argument("--out", type=Path, required=True, help="the file of results, a JSON object a line")
    parser.add_argument("--cifar10", help="folder with train/ and test/")
    parser.add_argument("--tiny", help="folder with train/ and val/")
    parser.add_argument("--study", choices=list(STUDIES), default="levels")
    parser.add_argument("--arms", nargs="*", help="names of arms; all if not given")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=180.0, help="computing time of a run")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of the measurement of steps")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--img", type=int, default=32)
    parser.add_argument("--drop-path", type=float, default=0.0)
    parser.add_argument("--predictor-width", type=int, default=64)
    parser.add_argument("--projector", type=int, default=256)
    parser.add_argument("--momentum", type=float, default=0.99)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--bank", type=int, default=4000, help="images of each half of a probe set")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--precision", default="bf16-mixed")
    return parser.parse_args()


def main() -> None:
    """Run or print."""
    args = parse()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*num_workers|.*does not have many workers.*")
    {"steps": steps, "run": run, "table": table}[args.command](args)


if __name__ == "__main__":
    main()
