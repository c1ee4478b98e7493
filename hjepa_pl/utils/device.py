"""Devices by name."""

import torch

from hjepa_pl.utils.settings import invalid


def choose_device(key: str, name: str) -> torch.device:
    """Return a device by name; `auto` is the fastest that is there.

    Args:
        key: The key that holds the name, for messages.
        name: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.

    Raises:
        ConfigError: If there is no such device.
    """
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        return torch.device(next(d for d in ("cuda", "mps", "cpu") if d in there))
    if name not in there:
        raise invalid(key, name, f"is not here; use auto or {' or '.join(there)}.")
    return torch.device(name)
