"""Augmentations that draw an operation for each image: RandAugment and 3-Augment.

All take and give (B, C, H, W) float32 in [0, 1].
"""

import math

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from hjepa_pl.data.augment import color
from hjepa_pl.data.augment.crop_resize import apply_axes

_BINS = 31
OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
"""RandAugment's, by torchvision's names and in its order."""
SIGNED = frozenset(OPERATIONS[1:10])
"""Those that go either way."""


def rand_augment(images: Tensor, u: Tensor, magnitude: int, has_colour: bool) -> Tensor:
    """Apply some operations to each image, drawn with replacement (RandAugment, arXiv:1909.13719).

    All images that drew the same operation and sign go through one call. (torchvision and the paper draw the same way;
    magnitudes, nearest pixels and black borders are torchvision's.)

    Args:
        images: (B, C, H, W).
        u: (B, 2 * operations for each image) uniform in [0, 1): the operations, then the signs.
        magnitude: 0 to 30.
        has_colour: Whether `Color` is among the operations; it does nothing to grey.

    Returns:
        (B, C, H, W) float32.
    """
    names = [name for name in OPERATIONS if has_colour or name != "Color"]
    count = u.shape[1] // 2
    signed = torch.tensor([name in SIGNED for name in names]).to(u.device, non_blocking=True)
    drawn = (u[:, :count] * len(names)).long().clamp_(max=len(names) - 1)
    cells = (2 * drawn + ((u[:, count:] < 0.5) & signed[drawn])).T
    order = cells.argsort(1)
    # The sizes of all groups come to the host at once: it waits for the device, once
    # for all views that are made together.
    sizes = (cells[:, None] == torch.arange(2 * len(names), device=u.device)[:, None]).sum(2).tolist()
    for rows_of_turn, sizes_of_turn in zip(order, sizes, strict=True):
        result = torch.empty_like(images)
        for cell, rows in enumerate(rows_of_turn.split(sizes_of_turn)):
            if len(rows):
                result[rows] = apply_operation(images[rows], names[cell // 2], magnitude, -1 if cell % 2 else 1)
        images = result
    return images


def apply_operation(images: Tensor, name: str, magnitude: int, sign: int) -> Tensor:
    """Apply one of RandAugment's operations to all images.

    Args:
        images: (B, C, H, W).
        name: One of `OPERATIONS`.
        magnitude: 0 to 30; without meaning for identity, autocontrast and equalize.
        sign: 1 or -1, the direction of those in `SIGNED`.

    Returns:
        (B, C, H, W) float32.
    """
    share = magnitude / (_BINS - 1)
    change = sign * 0.9 * share
    if name in ("ShearX", "ShearY"):
        angle = math.degrees(math.atan(sign * 0.3 * share))
        shear, centre = ([angle, 0.0], [0, 0]) if name == "ShearX" else ([0.0, angle], [0, 0])
        return T.affine(images, 0.0, [0, 0], 1.0, shear, center=centre)
    if name in ("TranslateX", "TranslateY"):
        side = images.shape[3] if name == "TranslateX" else images.shape[2]
        by = int(sign * 150 / 331 * side * share)
        return T.affine(images, 0.0, [by, 0] if name == "TranslateX" else [0, by], 1.0, [0.0, 0.0])
    if name == "Rotate":
        return T.rotate(images, sign * 30 * share)
    if name == "Posterize":
        return T.posterize(images, 8 - round(4 * share))
    if name == "Solarize":
        return T.solarize(images, 1 - share)
    return {
        "Identity": lambda: images,
        "Brightness": lambda: T.adjust_brightness(images, 1 + change),
        "Color": lambda: T.adjust_saturation(images, 1 + change),
        "Contrast": lambda: T.adjust_contrast(images, 1 + change),
        "Sharpness": lambda: T.adjust_sharpness(images, 1 + change),
        "AutoContrast": lambda: T.autocontrast(images),
        "Equalize": lambda: T.equalize(images),
    }[name]()


def three_augment(images: Tensor, u: Tensor, has_colour: bool) -> Tensor:
    """Make each image grey, solarised or blurred, one of the three by chance (3-Augment, DeiT III, arXiv:2204.07118).

    Args:
        images: (B, C, H, W).
        u: (B, 2) uniform in [0, 1): which, and how wide the blur.
        has_colour: Whether grey is among the three; it does nothing to grey.

    Returns:
        (B, C, H, W) float32.
    """
    choice = (u[:, 0] * 3).floor_() if has_colour else 1 + (u[:, 0] * 2).floor_()
    if has_colour:
        images = torch.where((choice == 0)[:, None, None, None], color.to_gray(images), images)
    images = color.solarize(images, choice == 1)
    (height, width), taps = images.shape[2:], color.blur_kernel_size(min(images.shape[2:]))
    sigma, chosen = 0.1 + 1.9 * u[:, 1], choice == 2
    rows = color.blur_matrix(sigma, chosen, height, taps)
    return apply_axes(images, rows, rows if width == height else color.blur_matrix(sigma, chosen, width, taps))
