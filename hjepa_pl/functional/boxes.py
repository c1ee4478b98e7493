"""Where one crop of an image lies in another."""

from typing import NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """Where cells of other crops lie on the grid of one view, and how they are to be read."""

    rows: Tensor
    """(B, n) float32, in patches of the view; the centre of its first patch is 0, places outside it are as good."""
    columns: Tensor
    """(B, n) float32."""
    scale: Tensor
    """(B, n, 3) float32: logarithms of a patch's height and width over those of the view's, and 1 where the crop is
    mirrored against the view, else 0."""

    def pick(self, index: Tensor) -> "Places":
        """Return the places at (B, k) of the n cells."""
        scale = self.scale.gather(1, index[..., None].expand(-1, -1, 3))
        return Places(self.rows.gather(1, index), self.columns.gather(1, index), scale)


def places_in(boxes: Tensor, grid: tuple[int, int], view: Tensor, view_grid: tuple[int, int], cell: int = 1) -> Places:
    """Return where the cells of crops lie on the grid of a view of the same images.

    Args:
        boxes: (K, B, 4) of the crops: top, left, bottom, right as shares of the image; left > right if mirrored.
        grid: H and W of a crop, in patches.
        view: (B, 4), the view's box.
        view_grid: H and W of the view, in patches.
        cell: Side of a cell, in patches of the crop.

    Returns:
        The places of K * H // cell * W // cell cells, crop by crop in raster order.
    """
    low, high = view[:, None, :2], view[:, None, 2:]
    # From a share of the crop, over a share of the image, to patches of the view. All is made on the device.
    axes = [(torch.arange(n // cell, device=view.device) + 0.5) * (cell / n) for n in grid]
    share = torch.cartesian_prod(*axes)  # (cells, 2): down and across
    first, side = boxes[:, :, None, :2], (boxes[..., 2:] - boxes[..., :2])[:, :, None]
    inside = (first + share * side - low) / (high - low)  # (K, B, cells, 2)
    ratio = side / (high - low)
    rows, columns = (inside[..., i] * n - 0.5 for i, n in enumerate(view_grid))
    down, across = (ratio[..., i] * (m / n) for i, (m, n) in enumerate(zip(view_grid, grid, strict=True)))
    mirrored = (across < 0).to(across)
    scale = torch.stack([down.log(), across.abs().log(), mirrored], dim=-1).expand(-1, -1, len(share), -1)
    return Places(*(x.transpose(0, 1).flatten(1, 2) for x in (rows, columns, scale)))
