"""Crop, flip and resize of a batch as two small matrix products."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.functional.choice import first_true
from hjepa_pl.utils.sizes import ImgSize, sides

_TRIES = 10
CROP_NUMBERS = 2 * _TRIES + 2
"""Uniform numbers that `crop_boxes` takes for a crop."""


def crop_boxes(
    u: Tensor,
    height: Tensor | int,
    width: Tensor | int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Tensor:
    """Draw a crop for each image as torchvision's `RandomResizedCrop`: the first of ten that fits, else a center crop.

    Args:
        u: (B, CROP_NUMBERS) uniform in [0, 1).
        height: Height of all images, or (B,).
        width: Width of all images, or (B,).
        scale: Smallest and largest fraction of the area.
        ratio: Smallest and largest width over height.

    Returns:
        (B, 4) float32 whole numbers: top, left, height, width.
    """
    # `full` runs on the device; `tensor` would copy from the host.
    full_h, full_w = (
        x.to(u) if isinstance(x, Tensor) else torch.full((len(u),), float(x), device=u.device) for x in (height, width)
    )
    area = (full_h * full_w)[:, None] * (scale[0] + (scale[1] - scale[0]) * u[:, :_TRIES])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * u[:, _TRIES : 2 * _TRIES])
    w, h = torch.round(torch.sqrt(area * aspect)), torch.round(torch.sqrt(area / aspect))
    fits = (w >= 1) & (w <= full_w[:, None]) & (h >= 1) & (h <= full_h[:, None])
    first = first_true(fits)[:, None]
    some = fits.any(1)
    # If none fits: the largest crop of an allowed ratio.
    h = torch.where(some, h.gather(1, first)[:, 0], torch.minimum(full_h, torch.round(full_w / ratio[0]).clamp_(min=1)))
    w = torch.where(some, w.gather(1, first)[:, 0], torch.minimum(full_w, torch.round(full_h * ratio[1]).clamp_(min=1)))
    free_h, free_w = full_h - h, full_w - w
    # u is below 1, but the product may round up to free + 1.
    top = torch.where(some, torch.minimum(torch.floor(u[:, -2] * (free_h + 1)), free_h), torch.floor(free_h / 2))
    left = torch.where(some, torch.minimum(torch.floor(u[:, -1] * (free_w + 1)), free_w), torch.floor(free_w / 2))
    return torch.stack([top, left, h, w], 1)


def axis_weights(start: Tensor, length: Tensor, size: int, total: int, flip: Tensor | None = None) -> Tensor:
    """Make matrices that resize one axis by an antialiased triangle filter.

    Args:
        start: (B,) first pixel of each crop.
        length: (B,) pixels of each crop.
        size: Pixels of the result.
        total: Pixels of the image.
        flip: (B,) bool: reverse the axis.

    Returns:
        (B, size, total) float32 rows that sum to 1 and are zero outside the crop.
    """
    scale = (length / size)[:, None, None]
    out = torch.arange(size, device=start.device, dtype=torch.float32)[None, :, None]
    if flip is not None:
        out = torch.where(flip[:, None, None], size - 1 - out, out)
    first = start[:, None, None]
    center = first + scale * (out + 0.5)
    pixel = torch.arange(total, device=start.device, dtype=torch.float32)[None, None]
    weights = (1 - (pixel + 0.5 - center).abs_() / scale.clamp(min=1.0)).clamp_(min=0.0)
    weights *= (pixel >= first) & (pixel < first + length[:, None, None])
    return weights.div_(weights.sum(-1, keepdim=True))


def apply_axes(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply every channel by its image's matrices.

    Args:
        images: (B, C, H, W) float32.
        rows: (B, S, H).
        columns: (B, R, W).

    Returns:
        (B, C, S, R) float32.
    """
    b, c, h, w = images.shape
    wide = torch.bmm(images.reshape(b, c * h, w), columns.transpose(1, 2)).view(b * c, h, -1)
    return torch.bmm(rows.repeat_interleave(c, 0), wide).view(b, c, rows.shape[1], -1)


def clean_resize(images: Tensor, size: ImgSize) -> Tensor:
    """Resize images to cover `size` (antialiased) and crop the center, as for evaluation.

    Height and width are resized by one factor, so the aspect ratio is kept.

    Args:
        images: (B, C, H, W) uint8 on the host, or float32.
        size: Side of a square result, or height and width.

    Returns:
        (B, C, H', W') of the same dtype, H' x W' being `size`; the images themselves if they have that size.
    """
    height, width = images.shape[2:]
    target = sides(size)
    if (height, width) == target:
        return images
    # The factor, as a fraction, by which the image just covers the result.
    to, short = (target[0], height) if target[0] * width >= target[1] * height else (target[1], width)
    # The whole axes are resized before the crop: pixels outside it count in the filter at its edge.
    resized = [max(side, round(total * to / short)) for total, side in zip((height, width), target, strict=True)]
    middle = [slice((n - side) // 2, (n - side) // 2 + side) for n, side in zip(resized, target, strict=True)]
    if not images.is_floating_point():
        # torch's uint8 kernel has the same filter and is much faster on large images of the host.
        whole = F.interpolate(images, size=resized, mode="bilinear", antialias=True)
        return whole[..., middle[0], middle[1]].contiguous()
    matrices = []
    for total, n, kept in zip((height, width), resized, middle, strict=True):
        full = axis_weights(images.new_zeros(1), _one(total, images), n, total)
        matrices.append(full[:, kept].expand(len(images), -1, -1))
    return apply_axes(images, *matrices)


def _one(value: int, like: Tensor) -> Tensor:
    return torch.full((1,), float(value), device=like.device)
