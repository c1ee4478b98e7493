"""`hjepa --version`: what is installed, and on which machine, without importing any of it."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import hjepa_pl

_PACKAGES = ("torch", "torchvision", "lightning", "timm", "onnxruntime")


def version_lines() -> list[str]:
    """Return the version of this package, those of Python and what results depend on, and the device."""
    found = [f"python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue  # of an optional package; the others cannot be missing
    return [f"hjepa_pl {hjepa_pl.__version__}", ", ".join(found), f"device: {_device()}"]


def _device(drivers: Path = Path("/proc/driver/nvidia/gpus")) -> str:
    """Return the GPUs that the system lists (whether torch can use them is not looked at), or the CPU.

    Args:
        drivers: Where NVIDIA's driver for Linux describes its GPUs.
    """
    lines = [line for file in sorted(drivers.glob("*/information")) for line in file.read_text().splitlines()]
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    if names:
        kinds = dict.fromkeys(names)
        return ", ".join(f"{names.count(name)} x {name}" for name in kinds)
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "Apple GPU"
    return f"CPU, {os.cpu_count()} cores"
