"""Random Erasing (arXiv:1708.04896), one box per image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hjepa_pl.data.augment.crop_resize import CROP_NUMBERS, crop_boxes
from hjepa_pl.data.augment.draws import Draws
from hjepa_pl.data.augment.part import Part, StepInfo
from hjepa_pl.functional.counters import Stream


@dataclass(frozen=True, kw_only=True)
class RandomErasing(Part):
    """Sets a box of some images to the mean."""

    erase: float = 0.0
    erase_scale: tuple[float, float] | None = None
    erase_ratio: tuple[float, float] | None = None
    normalized = True

    @property
    def numbers(self) -> dict[int, int]:
        """Whether a box is erased, and the box."""
        return {Stream.ERASE: 1, Stream.ERASE_BOX: CROP_NUMBERS}

    def __call__(self, images: Tensor, draws: Draws, info: StepInfo) -> Tensor:
        """Erase a box with probability `erase`."""
        assert self.erase_scale is not None
        assert self.erase_ratio is not None
        u = (draws[Stream.ERASE], draws[Stream.ERASE_BOX])
        return erase(images, u, self.erase, self.erase_scale, self.erase_ratio)


def erase(
    images: Tensor,
    u: tuple[Tensor, Tensor],
    probability: float,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Tensor:
    """Set a box of some images to 0, the mean of normalized images (timm's mode `const`).

    Args:
        images: (B, C, H, W) float32, normalized.
        u: Uniform numbers: (B, 1) for the choice of images, and (B, CROP_NUMBERS) for the boxes.
        probability: Probability that a box of an image is erased.
        scale: Smallest and largest fraction of the area.
        ratio: Smallest and largest width over height, in pixels.

    Returns:
        (B, C, H, W) float32.
    """
    height, width = images.shape[2:]
    box = crop_boxes(u[1], height, width, scale, ratio)[:, :, None]
    # Where no attempt fits, `crop_boxes` returns the largest box; nothing is erased then, as in timm.
    fits = box[:, 2] * box[:, 3] <= scale[1] * height * width + max(height, width)
    row = torch.arange(height, device=images.device)[None]
    column = torch.arange(width, device=images.device)[None]
    inside = ((row >= box[:, 0]) & (row < box[:, 0] + box[:, 2]))[:, :, None]
    inside = inside & ((column >= box[:, 1]) & (column < box[:, 1] + box[:, 3]))[:, None]
    chosen = (u[0][:, :, None] < probability) & fits[:, :, None]
    return images.masked_fill((inside & chosen)[:, None], 0.0)
