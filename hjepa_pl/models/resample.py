"""Stretching a table of positions over another grid."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.functional.precision import without_autocast


def resample_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample positions as timm's `resample_abs_pos_embed` does: bicubic, antialiased.

    It is two products with small matrices, for the filter is the same along each axis: the gradient of the operator
    that timm uses came late to some devices (Apple's GPU: PyTorch pull 169785). The matrices, some hundred numbers, are
    made on the device at each call: kept ones would not outlive a change of device, or of real for fake tensors.

    Args:
        table: (1, H * W, D) in raster order, without prefix tokens.
        old: H and W.
        new: Rows and columns wanted.

    Returns:
        (1, rows * columns, D), of the table's dtype.
    """
    with without_autocast(table.device):
        rows, columns = (_axis(a, b, table.device) for a, b in zip(old, new, strict=True))
        found = torch.einsum("yh,xw,hwd->yxd", rows, columns, table[0].float().unflatten(0, old))
    return found.flatten(0, 1)[None].to(table.dtype)


@torch.no_grad()
def _axis(old: int, new: int, device: torch.device) -> Tensor:
    """Return the (new, old) matrix that resamples an axis: what the filter makes of each place alone."""
    alone = torch.eye(old, device=device)[None, None]
    return F.interpolate(alone, size=(new, old), mode="bicubic", antialias=True)[0, 0]
