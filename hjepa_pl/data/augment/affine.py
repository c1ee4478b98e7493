"""Random rotation and translation."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_pl.data.augment.draws import Draws
from hjepa_pl.data.augment.part import Part, StepInfo
from hjepa_pl.functional.counters import Stream


@dataclass(frozen=True, kw_only=True)
class Affine(Part):
    """Rotates and translates each image by random amounts."""

    rotate: float = 0.0
    translate: float = 0.0
    before_crop = True
    moves = True

    @property
    def numbers(self) -> dict[int, int]:
        """Angle, horizontal and vertical shift."""
        return {Stream.AFFINE: 3}

    def __call__(self, images: Tensor, draws: Draws, info: StepInfo) -> Tensor:
        """Rotate by up to `rotate` degrees and shift by up to `translate` of the size, either way."""
        u = draws[Stream.AFFINE] * 2 - 1
        return rotate_and_translate(images, u[:, 0] * self.rotate, u[:, 1:] * self.translate)


def rotate_and_translate(images: Tensor, degrees: Tensor, shift: Tensor) -> Tensor:
    """Rotate each image about its center, then shift it; pixels from outside are black.

    Args:
        images: (B, C, H, W) float32.
        degrees: (B,) counter-clockwise.
        shift: (B, 2) to the right and down, as a fraction of width and height.

    Returns:
        (B, C, H, W) float32.
    """
    height, width = images.shape[2:]
    angle = degrees * (torch.pi / 180)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # The grid holds the source of each output pixel; its coordinates run from -1 to 1 along both axes.
    right, down = 2 * shift[:, 0], 2 * shift[:, 1]
    b, d = -sin * height / width, sin * width / height
    theta = torch.stack([cos, b, -cos * right - b * down, d, cos, -d * right - cos * down], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
