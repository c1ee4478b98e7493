"""Position of one crop of an image in another."""

from typing import NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """Positions of other crops' cells on the grid of one view, and their scale."""

    rows: Tensor
    """(B, n) float32, in patches of the view, from the center of its first patch; they may be outside the view."""
    columns: Tensor
    """(B, n) float32."""
    scale: Tensor
    """(B, n, 3) float32: logarithms of a patch's height and width relative to the view's patches, and 1 if the crop is
    mirrored relative to the view, else 0."""

    def pick(self, index: Tensor) -> "Places":
        """Return those of the cells with indices (B, k)."""
        scale = self.scale.gather(1, index[..., None].expand(-1, -1, 3))
        return Places(self.rows.gather(1, index), self.columns.gather(1, index), scale)


def places_in(boxes: Tensor, grid: tuple[int, int], view: Tensor, view_grid: tuple[int, int], cell: int = 1) -> Places:
    """Return the positions of crops' cells on the grid of a view of the same images.

    Args:
        boxes: (K, B, 4) of the crops: top, left, bottom, right as fractions of the image; left > right if mirrored.
        grid: H and W of a crop, in patches.
        view: (B, 4), the view's box.
        view_grid: H and W of the view, in patches.
        cell: Height and width of a cell, in patches of the crop.

    Returns:
        The positions of K * H // cell * W // cell cells, crop by crop in raster order.
    """
    low, high = view[:, None, :2], view[:, None, 2:]
    # From fractions of the crop to fractions of the image to patches of the view, all on the device.
    axes = [(torch.arange(n // cell, device=view.device) + 0.5) * (cell / n) for n in grid]
    fraction = torch.cartesian_prod(*axes)  # (cells, 2): down and across
    first, size = boxes[:, :, None, :2], (boxes[..., 2:] - boxes[..., :2])[:, :, None]
    inside = (first + fraction * size - low) / (high - low)  # (K, B, cells, 2)
    ratio = size / (high - low)
    rows, columns = (inside[..., i] * n - 0.5 for i, n in enumerate(view_grid))
    down, across = (ratio[..., i] * (m / n) for i, (m, n) in enumerate(zip(view_grid, grid, strict=True)))
    mirrored = (across < 0).to(across)
    scale = torch.stack([down.log(), across.abs().log(), mirrored], dim=-1).expand(-1, -1, len(fraction), -1)
    return Places(*(x.transpose(0, 1).flatten(1, 2) for x in (rows, columns, scale)))
