"""Full precision inside a step that runs under autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which a device computes in its tensors' own precision; devices without autocast always do."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


def autocasts(device: torch.device) -> bool:
    """Return whether autocast is on for a device; never for one that has none (meta)."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
