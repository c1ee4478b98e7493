"""Augmentations that draw an operation for each image: RandAugment and 3-Augment.

All take and return (B, C, H, W) float32 in [0, 1].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from hjepa_pl.data.augment import color
from hjepa_pl.data.augment.crop_resize import apply_axes
from hjepa_pl.data.augment.draws import Draws
from hjepa_pl.data.augment.part import Part, StepInfo
from hjepa_pl.functional.counters import Stream

_BINS = 31
OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
"""Operations of RandAugment, with torchvision's names and in its order."""
SIGNED = frozenset(OPERATIONS[1:10])
"""Operations whose magnitude has a random sign."""


@dataclass(frozen=True, kw_only=True)
class RandAugment(Part):
    """Applies `rand_augment` random operations of strength `rand_magnitude` to each image."""

    rand_augment: int = 0
    rand_magnitude: int | None = None
    moves = True

    @property
    def numbers(self) -> dict[int, int]:
        """Operations and signs."""
        return {Stream.RAND_AUGMENT: 2 * self.rand_augment}

    def __call__(self, images: Tensor, draws: Draws, info: StepInfo) -> Tensor:
        """Apply the operations."""
        assert self.rand_magnitude is not None
        return rand_augment(images, draws[Stream.RAND_AUGMENT], self.rand_magnitude, info.has_color)


@dataclass(frozen=True, kw_only=True)
class ThreeAugment(Part):
    """Converts each image to gray, solarizes or blurs it."""

    three_augment: bool = False

    @property
    def numbers(self) -> dict[int, int]:
        """The operation, and the width of the blur."""
        return {Stream.THREE_AUGMENT: 2}

    def __call__(self, images: Tensor, draws: Draws, info: StepInfo) -> Tensor:
        """Apply one of the three."""
        return three_augment(images, draws[Stream.THREE_AUGMENT], info.has_color)


def rand_augment(images: Tensor, u: Tensor, magnitude: int, has_color: bool) -> Tensor:
    """Apply some operations to each image, drawn with replacement (RandAugment, arXiv:1909.13719).

    All images with the same operation and sign are changed in one call. Probabilities are those of torchvision and the
    paper; magnitudes, nearest-neighbor interpolation and black borders are torchvision's.

    Args:
        images: (B, C, H, W).
        u: (B, 2 * operations for each image) uniform in [0, 1): the operations, then the signs.
        magnitude: 0 to 30.
        has_color: Whether `Color` is among the operations; it does nothing to gray images.

    Returns:
        (B, C, H, W) float32.
    """
    names = [name for name in OPERATIONS if has_color or name != "Color"]
    count = u.shape[1] // 2
    signed = torch.tensor([name in SIGNED for name in names]).to(u.device, non_blocking=True)
    drawn = (u[:, :count] * len(names)).long().clamp_(max=len(names) - 1)
    cells = (2 * drawn + ((u[:, count:] < 0.5) & signed[drawn])).T
    order = cells.argsort(1)
    # The sizes of all groups are copied to the host at once, so that it waits for the device only once.
    sizes = (cells[:, None] == torch.arange(2 * len(names), device=u.device)[:, None]).sum(2).tolist()
    for pass_rows, pass_sizes in zip(order, sizes, strict=True):
        result = torch.empty_like(images)
        for cell, rows in enumerate(pass_rows.split(pass_sizes)):
            if len(rows):
                result[rows] = apply_operation(images[rows], names[cell // 2], magnitude, -1 if cell % 2 else 1)
        images = result
    return images


def apply_operation(images: Tensor, name: str, magnitude: int, sign: int) -> Tensor:
    """Apply one of RandAugment's operations to all images.

    Args:
        images: (B, C, H, W).
        name: One of `OPERATIONS`.
        magnitude: 0 to 30; ignored by identity, autocontrast and equalize.
        sign: 1 or -1, the direction of the operations in `SIGNED`.

    Returns:
        (B, C, H, W) float32.
    """
    strength = magnitude / (_BINS - 1)
    change = sign * 0.9 * strength
    if name in ("ShearX", "ShearY"):
        angle = math.degrees(math.atan(sign * 0.3 * strength))
        shear, center = ([angle, 0.0], [0, 0]) if name == "ShearX" else ([0.0, angle], [0, 0])
        return T.affine(images, 0.0, [0, 0], 1.0, shear, center=center)
    if name in ("TranslateX", "TranslateY"):
        size = images.shape[3] if name == "TranslateX" else images.shape[2]
        by = int(sign * 150 / 331 * size * strength)
        return T.affine(images, 0.0, [by, 0] if name == "TranslateX" else [0, by], 1.0, [0.0, 0.0])
    if name == "Rotate":
        return T.rotate(images, sign * 30 * strength)
    if name == "Posterize":
        return T.posterize(images, 8 - round(4 * strength))
    if name == "Solarize":
        return T.solarize(images, 1 - strength)
    operations: dict[str, Callable[[], Tensor]] = {
        "Identity": lambda: images,
        "Brightness": lambda: T.adjust_brightness(images, 1 + change),
        "Color": lambda: T.adjust_saturation(images, 1 + change),
        "Contrast": lambda: T.adjust_contrast(images, 1 + change),
        "Sharpness": lambda: T.adjust_sharpness(images, 1 + change),
        "AutoContrast": lambda: T.autocontrast(images),
        "Equalize": lambda: T.equalize(images),
    }
    return operations[name]()


def three_augment(images: Tensor, u: Tensor, has_color: bool) -> Tensor:
    """Convert each image to gray, solarize or blur it, with equal probability (3-Augment, DeiT III, arXiv:2204.07118).

    Args:
        images: (B, C, H, W).
        u: (B, 2) uniform in [0, 1): the operation, and the width of the blur.
        has_color: Whether gray is among the three; it does nothing to gray images.

    Returns:
        (B, C, H, W) float32.
    """
    choice = (u[:, 0] * 3).floor_() if has_color else 1 + (u[:, 0] * 2).floor_()
    if has_color:
        images = torch.where((choice == 0)[:, None, None, None], color.to_gray(images), images)
    images = color.solarize(images, choice == 1)
    (height, width), taps = images.shape[2:], color.blur_kernel_size(min(images.shape[2:]))
    sigma, chosen = 0.1 + 1.9 * u[:, 1], choice == 2
    rows = color.blur_matrix(sigma, chosen, height, taps)
    return apply_axes(images, rows, rows if width == height else color.blur_matrix(sigma, chosen, width, taps))
