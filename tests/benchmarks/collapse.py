#!/usr/bin/env python3
"""What keeps a JEPA from collapse: a model that must collapse, and each remedy alone, at equal data, seed and steps.

    uv run python tests/benchmarks/collapse.py [--steps 400] [--seed 0] [--out FILE]

The model that must: token levels whose targets the online encoder makes itself, with gradient, and no regulariser.
Digits, embedded. Prints a Markdown table: the monitor's figures at the last check, the step at which it turned red, and
k-NN on held-out digits.
"""

import argparse
import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.callbacks.collapse_monitor import CollapseMonitor
from hjepa_pl.callbacks.probe_callback import ProbeCallback

TOKENS, IMAGE = {"cell": 1, "weight": 0.1}, {"cell": "image"}
NO_EMA = {"ema": None, "experimental": True}
ARMS: dict[str, dict[str, Any]] = {
    "nothing": {"levels": [TOKENS], **NO_EMA},
    "EMA": {"levels": [TOKENS], "ema": {"momentum": 0.98}},
    "SIGReg on tokens": {"levels": [TOKENS], "regularizers": [{"kind": "sigreg", "stream": "tokens"}], **NO_EMA},
    "VICReg on tokens": {
        "levels": [TOKENS], "regularizers": [{"kind": "vicreg", "stream": "tokens", "weight": 0.2}], **NO_EMA,
    },
    "SIGReg on predictions": {
        "levels": [TOKENS], "regularizers": [{"kind": "sigreg", "stream": "last_c1"}], **NO_EMA,
    },
    "image level, SIGReg": {"levels": [TOKENS, IMAGE], "regularizers": [{"kind": "sigreg"}], **NO_EMA},
    "image level, SIGReg, projector without norm": {
        "levels": [TOKENS, IMAGE], "regularizers": [{"kind": "sigreg"}], **NO_EMA,
        "projector": {"hidden_dim": 256, "out_dim": 32, "norm": "none"},
    },
    "image level, VICReg": {
        "levels": [TOKENS, IMAGE | {"compare": "none"}], "regularizers": [{"kind": "vicreg", "weight": 0.2}], **NO_EMA,
    },
    "image level, NT-Xent": {
        "levels": [TOKENS, IMAGE | {"compare": "none"}], "regularizers": [{"kind": "ntxent", "weight": 1.0}], **NO_EMA,
    },
}  # fmt: skip


class FirstRed(CollapseMonitor):
    """The monitor, with the step of its first alarm."""

    at = 0

    def _update_status(self, trainer: pl.Trainer) -> None:
        super()._update_status(trainer)
        if self.status == "red" and not self.at:
            self.at = trainer.global_step


def run(arm: dict[str, Any], steps: int, seed: int) -> tuple[FirstRed, float]:
    """Train one arm; return its monitor and k-NN accuracy in percent."""
    pl.seed_everything(seed, verbose=False)
    views = 2 if len(arm["levels"]) == 2 else 1
    module = HJEPALightningModule(
        **{
            "encoder": {"embed_dim": 64, "depth": 4, "num_heads": 4, "img_size": 16, "patch_size": 4, "in_chans": 1},
            "predictor": {"embed_dim": 48, "depth": 2, "num_heads": 3},
            "projector": {"hidden_dim": 256, "out_dim": 32} if views == 2 else {},
            "optimizer": {"lr": 2e-3},
            "level_scale": "raw",
            "seed": seed,
            **arm,
        }
    )
    data = MultiDatasetDataModule(
        datasets=[{"name": "digits"}],
        probe=[{"name": "digits"}],
        batch_size=128,
        views=views,
        augmentation={"flip": 0.0, "jitter": [0.4, 0.4, 0.0, 0.0], "gray": 0.0, "solarize": 0.0},
        seed=seed,
    )
    monitor, probes = FirstRed(every_n_steps=20), ProbeCallback()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, gradient_clip_val=3.0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        check_val_every_n_epoch=10**6, callbacks=[monitor, probes],
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # the probes' own table
        trainer.fit(module, data)
    network = "target" if module.target_encoder is not None else "online"
    found = probes.results
    return monitor, found.get("probe/digits/knn", found.get(f"probe/digits/{network}/knn", float("nan")))


def main() -> None:
    """Run every arm and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Collapse at step|.*does not have many workers|.*LeafSpec|.*in eval mode")
    lines = [
        "| what holds it | std at a position | share explained by position | rank, embedding | monitor | k-NN |",
        "|---|---|---|---|---|---|",
    ]
    for name in args.arms:
        monitor, knn = run(ARMS[name], args.steps, args.seed)
        figures = monitor.metrics
        row = [
            name,
            f"{figures['collapse/last_c1/std']:.3f}",
            f"{100 * figures['collapse/last_c1/position_share']:.1f} %",
            f"{figures['collapse/rank']:.1f}",
            f"red at {monitor.at}" if monitor.at else "green",
            f"{knn:.1f}",
        ]
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
