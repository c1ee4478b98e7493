"""Kill -9 and resume: real processes, bit-identical weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from hjepa_pl.__main__ import main
from tests.cli.test_cli import TINY

# Twelve batches an epoch; drop path, two sets in memory, one in files with a worker, and every random stream are on.
CONFIG = yaml.safe_load(yaml.safe_dump(TINY))
CONFIG["trainer"] |= {"max_epochs": 3}
CONFIG["model"]["init_args"]["encoder"]["drop_path_rate"] = 0.2
CONFIG["data"]["init_args"] |= {
    "datasets": [
        {"name": "digits", "weight": 0.5},
        {"name": "digits_canvas", "weight": 0.3},
        {"name": "folder", "root": "pictures", "weight": 0.2},
    ],
    "num_workers": 1,
    "epoch_size": 384,
    "probe": [{"name": "digits", "max_train": 100, "max_test": 50}],
}


def arguments(folder: Path, *more: str) -> list[str]:
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for i in range(50):  # of several sizes, so that they stay in files
        pixels = np.random.default_rng(i).integers(0, 256, (12 + i % 3, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i:02d}.png")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG).replace("root: pictures", f"root: {pictures}"))
    run = ["--results_dir", str(folder / "out"), "--time_budget", "48:00:00"]  # long: the steps rule the schedules
    return ["fit", "--config", str(path), *run, *more]


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "hjepa_pl", *arguments(folder, *more)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "out/tiny/checkpoints/last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    assert main(arguments(folder)) == 0
    return weights(folder)


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("where", ["mid-epoch", pytest.param("epoch end", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_bit_identical_weights(tmp_path, uninterrupted, where) -> None:
    steps = ["--checkpoint.last_every_n_steps=5"] if where == "mid-epoch" else []
    last = tmp_path / "out/tiny/checkpoints/last.ckpt"
    began = time.monotonic()
    process = subprocess.Popen(
        command(tmp_path, *steps), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )
    deadline = time.monotonic() + 150
    wanted = 15 if where == "mid-epoch" else 24
    while step_of(last) < wanted:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = time.monotonic() - began
    step = step_of(last)
    assert step < 36, "the run was over before it was killed"
    if where == "epoch end":
        assert step % 12 == 0
    began = time.monotonic()
    resumed = subprocess.run(
        command(tmp_path, *steps, "--ckpt_path=last"), capture_output=True, text=True, timeout=200, env=environment()
    )
    there += time.monotonic() - began
    assert resumed.returncode == 0, resumed.stderr
    # Both processes count from their start, imports included (half of it): all but the way out and under two seconds.
    assert 0.8 * there < json.loads((tmp_path / "out/tiny/summary.json").read_text())["seconds"] < there
    found = weights(tmp_path)
    assert found.keys() == uninterrupted.keys()
    different = [n for n in found if not torch.equal(found[n], uninterrupted[n])]
    assert not different
    rows = (tmp_path / "out/tiny/metrics.csv").read_text().splitlines()
    logged = [int(r.split(",")[0]) for r in rows[1:]]
    assert len(logged) == len(set(logged))


def step_of(path: Path) -> int:
    """Return the step of a checkpoint, -1 before there is one; written atomically, it can always be read."""
    return torch.load(path, weights_only=True)["global_step"] if path.exists() else -1
