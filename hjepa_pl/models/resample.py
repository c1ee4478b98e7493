"""Stretching a table of positions over another grid."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample positions as timm's `resample_abs_pos_embed` does: bicubic, antialiased.

    It is two products with small matrices, made once for a grid: the filter is the same along each axis, and the
    gradient of the operator that timm uses came late to some devices (Apple's GPU: PyTorch pull 169785).

    Args:
        table: (1, H * W, D) in raster order, without prefix tokens.
        old: H and W.
        new: Rows and columns wanted.

    Returns:
        (1, rows * columns, D), of the table's dtype.
    """
    with torch.autocast(table.device.type, enabled=False):
        rows, columns = (_axis(a, b, table.device) for a, b in zip(old, new, strict=True))
        found = torch.einsum("yh,xw,hwd->yxd", rows, columns, table[0].float().unflatten(0, old))
    return found.flatten(0, 1)[None].to(table.dtype)


@lru_cache(maxsize=64)
def _axis(old: int, new: int, device: torch.device) -> Tensor:
    """Return the (new, old) matrix that resamples an axis: what the filter makes of each place alone."""
    with torch.inference_mode(False), torch.no_grad():
        alone = torch.eye(old, device="cpu")[None, None]
        return F.interpolate(alone, size=(new, old), mode="bicubic", antialias=True)[0, 0].to(device)
