"""Where a result comes from: versions, commit, device, seed."""

import importlib.metadata
import json
import math
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

_PACKAGES = ("hjepa_pl", "torch", "torchvision", "lightning", "timm", "numpy", "Pillow", "simplejpeg")


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_hash() -> str | None:
    """Return the commit of this package's own repository, with "-dirty" for local changes; None outside of one."""
    here = Path(__file__).resolve()

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here.parent), *args], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        # In site-packages of a virtual environment inside somebody else's repository, the commit is not ours.
        git("ls-files", "--error-unmatch", str(here))
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(trainer: pl.Trainer) -> str:
    """Return the name of the device that this rank computes on."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = f"{_processor()} ({os.cpu_count()} cores)"
    return name if device.type == "cpu" else f"{device.type}, {name}"


def seed(trainer: pl.Trainer) -> int | None:
    """Return the seed of `seed_everything`, or that of the data."""
    text = os.environ.get("PL_GLOBAL_SEED")
    if text is not None:
        return int(text)
    return getattr(getattr(trainer, "datamodule", None), "seed", None)


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record in one piece: a reader sees the old file or the new one. NaN and infinity become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(_finite(record), file, indent=2, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
