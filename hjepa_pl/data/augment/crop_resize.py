"""Crop, flip and resize of a batch as two small matrix products."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.functional.choice import first_true
from hjepa_pl.utils.sizes import ImgSize, sides

_TRIES = 10
CROP_NUMBERS = 2 * _TRIES + 2
"""Uniform numbers that `crop_boxes` makes a crop of."""


def crop_boxes(
    u: Tensor,
    height: Tensor | int,
    width: Tensor | int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Tensor:
    """Draw a crop for each sample by torchvision's rule: the first of ten that fits, else the centre.

    Args:
        u: (B, CROP_NUMBERS) uniform in [0, 1).
        height: Of all images, or (B,).
        width: Of all images, or (B,).
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width over height.

    Returns:
        (B, 4) float32 whole numbers: top, left, height, width.
    """
    # `full` runs on the device; a tensor made from a number would be copied there.
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
    # The largest crop of an allowed ratio, for those that none fits.
    h = torch.where(some, h.gather(1, first)[:, 0], torch.minimum(full_h, torch.round(full_w / ratio[0]).clamp_(min=1)))
    w = torch.where(some, w.gather(1, first)[:, 0], torch.minimum(full_w, torch.round(full_h * ratio[1]).clamp_(min=1)))
    room_h, room_w = full_h - h, full_w - w
    # The share of the room is below 1, but the product may round up to it.
    top = torch.where(some, torch.minimum(torch.floor(u[:, -2] * (room_h + 1)), room_h), torch.floor(room_h / 2))
    left = torch.where(some, torch.minimum(torch.floor(u[:, -1] * (room_w + 1)), room_w), torch.floor(room_w / 2))
    return torch.stack([top, left, h, w], 1)


def axis_weights(start: Tensor, length: Tensor, size: int, total: int, flip: Tensor | None = None) -> Tensor:
    """Make the matrices that resize one axis by an antialiased triangle filter.

    Args:
        start: (B,) first pixel of each crop.
        length: (B,) pixels of each crop.
        size: Pixels wanted.
        total: Pixels of the image.
        flip: (B,) bool: read backwards.

    Returns:
        (B, size, total) float32 rows that sum to 1 and are zero outside the crop.
    """
    scale = (length / size)[:, None, None]
    out = torch.arange(size, device=start.device, dtype=torch.float32)[None, :, None]
    if flip is not None:
        out = torch.where(flip[:, None, None], size - 1 - out, out)
    first = start[:, None, None]
    centre = first + scale * (out + 0.5)
    pixel = torch.arange(total, device=start.device, dtype=torch.float32)[None, None]
    weights = (1 - (pixel + 0.5 - centre).abs_() / scale.clamp(min=1.0)).clamp_(min=0.0)
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


def crop_resize(images: Tensor, boxes: Tensor, flip: Tensor, size: ImgSize) -> Tensor:
    """Cut a box out of every image, flip it, and resize it.

    Args:
        images: (B, C, H, W) float32.
        boxes: (B, 4): top, left, height, width.
        flip: (B,) bool.
        size: Side of the result, or its height and width.

    Returns:
        (B, C, H', W') float32, H' x W' being `size`.
    """
    top, left, height, width = boxes.unbind(1)
    rows = axis_weights(top, height, sides(size)[0], images.shape[2])
    columns = axis_weights(left, width, sides(size)[1], images.shape[3], flip)
    return apply_axes(images, rows, columns)


def clean_resize(images: Tensor, size: ImgSize) -> Tensor:
    """Resize until the image just covers `size` (antialiased) and keep the centre: how images are judged.

    Both sides are resized by one factor, so that nothing is distorted: the short side of an image becomes that of a
    square.

    Args:
        images: (B, C, H, W) uint8 on the host, or float32.
        size: Side of the result, or its height and width.

    Returns:
        (B, C, H', W') of the same type, H' x W' being `size`; the images themselves if they have that size.
    """
    height, width = images.shape[2:]
    asked = sides(size)
    if (height, width) == asked:
        return images
    # The side that is short for its part decides on the factor, as a fraction.
    to, short = (asked[0], height) if asked[0] * width >= asked[1] * height else (asked[1], width)
    # The whole axes, from which the middle is kept: pixels outside the crop count in the filter at its edge.
    wanted = [max(side, round(total * to / short)) for total, side in zip((height, width), asked, strict=True)]
    middle = [slice((w - side) // 2, (w - side) // 2 + side) for w, side in zip(wanted, asked, strict=True)]
    if not images.is_floating_point():
        # A file's pixels on the host: torch's kernel for bytes, which has the same filter, is far ahead on large ones.
        whole = F.interpolate(images, size=wanted, mode="bilinear", antialias=True)
        return whole[..., middle[0], middle[1]].contiguous()
    matrices = []
    for total, w, kept in zip((height, width), wanted, middle, strict=True):
        full = axis_weights(images.new_zeros(1), _one(total, images), w, total)
        matrices.append(full[:, kept].expand(len(images), -1, -1))
    return apply_axes(images, *matrices)


def _one(value: int, like: Tensor) -> Tensor:
    return torch.full((1,), float(value), device=like.device)
