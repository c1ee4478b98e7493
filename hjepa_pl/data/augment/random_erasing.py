"""Random Erasing (arXiv:1708.04896), each image with a box of its own."""

import torch
from torch import Tensor

from hjepa_pl.data.augment.crop_resize import crop_boxes


def erase(
    images: Tensor,
    u: tuple[Tensor, Tensor],
    probability: float,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Tensor:
    """Set a box of some images to 0, which in normalised images is the mean (timm's mode `const`).

    Args:
        images: (B, C, H, W) float32, normalised.
        u: Uniform numbers: (B, 1) of who is chosen, and (B, CROP_NUMBERS) of the boxes.
        probability: That an image is chosen.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width over height, in pixels.

    Returns:
        (B, C, H, W) float32.
    """
    height, width = images.shape[2:]
    box = crop_boxes(u[1], height, width, scale, ratio)[:, :, None]
    # Where no try fits, a crop falls back to the largest there is: nothing is erased then, as in timm.
    fits = box[:, 2] * box[:, 3] <= scale[1] * height * width + max(height, width)
    row = torch.arange(height, device=images.device)[None]
    column = torch.arange(width, device=images.device)[None]
    inside = ((row >= box[:, 0]) & (row < box[:, 0] + box[:, 2]))[:, :, None]
    inside = inside & ((column >= box[:, 1]) & (column < box[:, 1] + box[:, 3]))[:, None]
    chosen = (u[0][:, :, None] < probability) & fits[:, :, None]
    return images.masked_fill((inside & chosen)[:, None], 0.0)
