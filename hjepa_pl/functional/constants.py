"""Small tensors of fixed numbers."""

from functools import cache

import torch
from torch import Tensor


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers as a float32 tensor (n,), cached: do not modify it.

    A new tensor would be copied from the host, which blocks an accelerator's queue.
    """
    with torch.inference_mode(False):  # the first call may be in validation, later ones in training
        return torch.tensor(values, device=device)
