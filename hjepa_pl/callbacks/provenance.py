"""Provenance of a result: package versions, commit, device."""

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

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
    """Return the commit of this package's repository, with "-dirty" for local changes; None if it is installed."""
    here = Path(__file__).resolve()

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here.parent), *args], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        # A virtual environment may be inside another repository, whose commit is not ours.
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
    """Return the name of the device of this rank."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = f"{_processor()} ({os.cpu_count()} cores)"
    return name if device.type == "cpu" else f"{device.type}, {name}"
