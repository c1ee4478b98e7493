#!/usr/bin/env python3
"""What the Trainer's loop costs a step beside the model: the same steps by `Trainer.fit` and by hand, in turn.

    uv run python tests/benchmarks/loop.py [--device cuda]

A model of next to no cost shows it best: what a step takes in `Trainer.fit` (loader, hooks, schedules, finite check,
logging every 50 steps, no probes) less what masks, networks, optimizer and EMA take without it. Views are made by the
data module in both.
"""

import argparse
import logging
import statistics
import time
import warnings

import lightning.pytorch as pl
import torch
from step import timed_step

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.utils.malloc import keep_freed_memory

ENCODER = {"embed_dim": 24, "depth": 1, "num_heads": 1, "patch_size": 4, "img_size": 32}
PREDICTOR = {"embed_dim": 24, "depth": 1, "num_heads": 1}


class Stamp(pl.Callback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *args: object) -> None:
        """Note it."""
        self.times.append(time.perf_counter())


def data() -> MultiDatasetDataModule:
    """Return data that lie in memory."""
    return MultiDatasetDataModule(
        datasets=[{"name": "fake"}], batch_size=64, epoch_size=1_000_000, img_size=32, in_chans=3, augmentation="none"
    )


def by_trainer(steps: int, device: str) -> list[float]:
    """Return the seconds of each step in `Trainer.fit`."""
    stamp = Stamp()
    trainer = pl.Trainer(
        accelerator=device, devices=1, max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[stamp], precision="bf16-mixed",
    )  # fmt: skip
    trainer.fit(HJEPALightningModule(encoder=ENCODER, predictor=PREDICTOR, levels="flat"), data())
    return [b - a for a, b in zip(stamp.times[10:], stamp.times[11:], strict=False)]


def by_hand(steps: int, device: str) -> list[float]:
    """Return the seconds of each step without the Trainer: batch, views and step."""
    module = HJEPALightningModule(encoder=ENCODER, predictor=PREDICTOR, levels="flat").train().to(device)
    optimizer, source = module.configure_optimizers(), data()
    source.setup("fit")
    if device == "cpu":
        keep_freed_memory()
    found, loader = [], iter(source.train_dataloader())
    for _ in range(steps):
        began = time.perf_counter()
        batch = pl.LightningDataModule.transfer_batch_to_device(source, next(loader), torch.device(device), 0)
        timed_step(module, optimizer, source.on_after_batch_transfer(batch, 0), bf16=True)
        found.append(time.perf_counter() - began)
    return found[10:]


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=210)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its greeting, ten times
    warnings.filterwarnings("ignore", module="lightning.*")
    pairs = []
    for _ in range(a.rounds):
        pairs.append([statistics.median(run(a.steps, a.device)) * 1e3 for run in (by_trainer, by_hand)])
        print(f"Trainer {pairs[-1][0]:.2f} ms a step, by hand {pairs[-1][1]:.2f} ms")
    print(f"the loop takes {statistics.median(x - y for x, y in pairs):.2f} ms a step (median of {a.rounds} pairs)")


if __name__ == "__main__":
    main()
