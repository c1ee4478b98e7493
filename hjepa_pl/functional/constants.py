"""Small tensors of fixed numbers."""

from functools import cache

import torch
from torch import Tensor


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return numbers as a float32 tensor (n,), the same one each time: not to be written to.

    Made anew it would be copied from the host, which an accelerator's queue of work waits for.
    """
    with torch.inference_mode(False):  # validation may ask first, and training go on with it
        return torch.tensor(values, device=device)
