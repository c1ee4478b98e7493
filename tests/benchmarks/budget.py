#!/usr/bin/env python3
"""A time budget over a run that is killed and resumed: how near its end is to the bell, and where its schedules end.

    uv run python tests/benchmarks/budget.py [--budget 00:03:00] [--kill 70] [--cifar10 FOLDER] [--out FOLDER]

Digits, and CIFAR-10 as a folder of class folders (train/, test/) if one is given. Each run is a process that gets
SIGKILL after --kill seconds, or at its first checkpoint if that is later, and a second that resumes. Seconds are those
of the whole processes, from start to exit. Prints a Markdown table.
"""

import argparse
import csv
import math
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from hjepa_pl.optim.budget import parse_duration
from hjepa_pl.optim.config import OptimizerConfig

CONFIGS = Path(__file__).parents[2] / "configs"
ALL = [
    "--trainer.max_epochs=100000", "--trainer.log_every_n_steps=1", "--checkpoint.last_every_n_steps=5",
    "--model.init_args.optimizer.weight_decay_end=0.1", "--model.init_args.ema.momentum_end=1.0",
]  # fmt: skip
"""The budget ends the run, not the epochs; weight decay and momentum have an end to be seen at."""


def runs(cifar10: str | None) -> dict[str, list[str]]:
    """Return the words after `hjepa fit` of each run."""
    found = {"digits": ["--config", str(CONFIGS / "quickstart.yaml"), *ALL]}
    if cifar10 is not None:
        found["CIFAR-10"] = [
            "--config", str(CONFIGS / "cifar10.yaml"), *ALL, "--trainer.accelerator=cpu", "--trainer.precision=32-true",
            "--trainer.check_val_every_n_epoch=1", "--data.init_args.epoch_size=2048", "--data.init_args.batch_size=64",
            "--model.init_args.encoder={size: null, embed_dim: 64, depth: 4, num_heads: 4, img_size: 32}",
            "--model.init_args.levels=[{cell: 1}, {cell: image}]",
            "--model.init_args.predictor={embed_dim: 48, depth: 2, num_heads: 3}",
            f"--data.init_args.datasets=[{{name: folder, root: {cifar10}/train}}]",
            f"--data.init_args.probe=[{{name: folder, root: {cifar10}, max_train: 1000, max_test: 500}}]",
        ]  # fmt: skip
    return found


def timed(words: list[str], kill: float = math.inf, saved: Path | None = None) -> float:
    """Run a process to its end, or to a SIGKILL once there is a checkpoint; return the seconds that it was there."""
    began = time.monotonic()
    process = subprocess.Popen(words, stdout=sys.stderr)
    while process.poll() is None:
        if saved is not None and time.monotonic() - began > kill and saved.exists():
            process.kill()
        time.sleep(0.05)
    if process.returncode != (0 if saved is None else -signal.SIGKILL):
        raise SystemExit(f"status {process.returncode}: {' '.join(words)}")
    return time.monotonic() - began


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="00:03:00")
    parser.add_argument("--kill", type=float, default=70.0)
    parser.add_argument("--cifar10")
    parser.add_argument("--out", default=tempfile.mkdtemp())
    options = parser.parse_args()
    budget = parse_duration(options.budget)
    print("| run | budget | until SIGKILL | resumed | sum | of the budget | lr / lowest | weight decay | momentum |")
    print("|" + "---|" * 9, flush=True)
    for name, words in runs(options.cifar10).items():
        command = [sys.executable, "-m", "hjepa_pl", "fit", *words, f"--time_budget={options.budget}"]
        command += [f"--results_dir={options.out}", f"--experiment_name={name}"]
        run = Path(options.out) / name
        last = run / "checkpoints" / "last.ckpt"
        first = timed(command, options.kill, last)
        second = timed([*command, "--ckpt_path=last"])
        checkpoint = torch.load(last, weights_only=True)
        group = checkpoint["optimizer_states"][0]["param_groups"][0]
        floor = (config := OptimizerConfig(**checkpoint["hyper_parameters"]["optimizer"])).floor(config.lr)
        with (run / "metrics.csv").open() as file:
            momentum = [row["train/momentum"] for row in csv.DictReader(file) if row["train/momentum"]][-1]
        spent = first + second
        print(
            f"| {name} | {budget:.0f} s | {first:.1f} s | {second:.1f} s | {spent:.1f} s "
            f"| {100 * spent / budget:.1f} % | {group['lr'] / floor:.6f} | {group['weight_decay']} | {momentum} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
