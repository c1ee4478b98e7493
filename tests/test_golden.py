"""Losses and weights of every config over 20 steps, against recorded ones: a change of structure changes no number.

`GOLDEN=record uv run pytest tests/test_golden.py` writes tests/golden.json anew, after a change that is meant to change
numbers. The recorded checksums are those of one machine: there they show equality to the bit, which kernels of another
processor need not give, so the tests compare within rounding.
"""

import csv
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from hjepa_pl.__main__ import main
from hjepa_pl.data.sources.class_folders import imagenet100_classes
from tests.test_configs import CONFIGS, CROPS_AT_ONCE, data_folder, write_tree  # noqa: F401 (a fixture)

GOLDEN = Path(__file__).parent / "golden.json"
STEPS = 20
NARROW = ["--model.init_args.encoder.embed_dim=48", "--model.init_args.encoder.depth=2"]
LOW = ["--model.init_args.predictor.embed_dim=48", "--model.init_args.predictor.depth=2"]


def train(path: Path, folder: Path) -> dict:
    """Train a config in 32 bits on tiny data with a narrow encoder; return its losses and norms of its weights."""
    torch.set_num_threads(1)
    text = path.read_text()
    if "imagenet" in text:
        write_tree(folder / "data" / "imagenet", imagenet100_classes()[:4])
    if "my_images" in text:
        write_tree(folder / "data" / "my_images", ["cat", "dog"], per_class=4)
    if "shards" in text:
        assert main(["shards", "data/my_images", "data/shards/train-%06d.tar", "--per-shard=4"]) == 0
    status = main([
        "fit", "--config", str(path), f"--trainer.max_steps={STEPS}", "--trainer.accelerator=cpu",
        "--trainer.devices=1", "--trainer.precision=32-true", "--trainer.log_every_n_steps=1",
        "--trainer.limit_val_batches=0",
        "--data.init_args.batch_size=4", "--data.init_args.epoch_size=16", "--data.init_args.probe=[]",
        "--data.init_args.holdout=null",
        "--model.init_args.optimizer.warmup_epochs=1", "--time_budget=null",
        *NARROW, *(LOW if path.stem in ("ijepa", "overnight", "folder") else []), *CROPS_AT_ONCE.get(path.stem, []),
    ])  # fmt: skip
    assert status == 0
    run = next((folder / "results").iterdir())
    with (run / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    checksum = hashlib.sha256()
    norms: dict[str, float] = {}
    for name, tensor in weights.items():
        checksum.update(tensor.contiguous().numpy().tobytes())
        root = name.split(".")[0]
        norms[root] = norms.get(root, 0.0) + float(tensor.double().abs().sum())
    return {"losses": losses, "weights": norms, "sha256": checksum.hexdigest()}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_losses_and_weights_are_as_recorded(path, data_folder) -> None:  # noqa: F811
    found = train(path, data_folder)
    assert len(found["losses"]) == STEPS
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("GOLDEN") == "record":
        GOLDEN.write_text(json.dumps(recorded | {path.stem: found}, indent=1) + "\n")
        return
    golden = recorded[path.stem]
    if os.environ.get("GOLDEN") == "bits":
        assert found["sha256"] == golden["sha256"]
    assert found["losses"][0] == pytest.approx(golden["losses"][0], rel=1e-5)
    assert found["losses"] == pytest.approx(golden["losses"], rel=1e-3)
    assert found["weights"] == pytest.approx(golden["weights"], rel=1e-4)
