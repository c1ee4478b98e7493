"""Color changes and blur of a batch, with a strength for each image; torchvision's formulas.

All take and return (B, C, H, W) float32 in [0, 1]; strengths are (B,).
"""

import torch
from torch import Tensor

from hjepa_pl.functional.constants import constant
from hjepa_pl.types import ConfigError

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue, as in torchvision."""


def adapt_channels(images: Tensor, channels: int) -> Tensor:
    """Return (B, C, H, W) images with `channels` channels: gray is repeated, color is converted to luma.

    Raises:
        ConfigError: For another number of channels than 1 or 3.
    """
    have = images.shape[1]
    if have == channels:
        return images
    if have == 1 and channels == 3:
        return images.expand(-1, 3, -1, -1)
    if have == 3 and channels == 1:
        luma = constant(LUMA, images.device)
        gray = torch.einsum("bchw,c->bhw", images.float(), luma)[:, None]
        return gray if images.is_floating_point() else gray.add_(0.5).to(images.dtype)
    raise ConfigError(f"invalid `data.in_chans={channels}`: images have {have} channels; use 1 or 3.")


def to_gray(images: Tensor) -> Tensor:
    """Return the luma, (B, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


def _column(strength: Tensor) -> Tensor:
    return strength[:, None, None, None]


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by the factor."""
    return (images * _column(factor)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma of the image."""
    mean = to_gray(images).mean((1, 2, 3))
    return (images * _column(factor)).add_(_column(mean * (1 - factor))).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the luma of the pixel."""
    gray = to_gray(images)
    return (images * _column(factor)).add_(gray * _column(1 - factor)).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Rotate the hue by a fraction of the circle; (B, 3, H, W) only."""
    red, green, blue = images.unbind(1)
    low, high = torch.aminmax(images, dim=1)
    chroma = high - low
    scale = 1.0 / torch.where(chroma == 0, 1.0, chroma)
    # Hue in sixths of the circle; of equal channels the first counts as the largest.
    from_blue = (red - green).mul_(scale).add_(4.0)
    from_green = (blue - red).mul_(scale).add_(2.0)
    hue = torch.where(high == green, from_green, from_blue)
    hue = torch.where(high == red, (green - blue).mul_(scale), hue)
    hue += (shift * 6.0)[:, None, None]
    out = torch.empty_like(images)
    for channel, offset in enumerate((5.0, 3.0, 1.0)):
        k = (hue + offset).remainder_(6.0)
        part = torch.minimum(k, 4.0 - k).clamp_(0, 1).mul_(chroma)
        torch.sub(high, part, out=out[:, channel])
    return out


def solarize(images: Tensor, chosen: Tensor) -> Tensor:
    """Invert values of at least one half in the chosen images; `chosen` is (B,) bool."""
    return torch.where(_column(chosen) & (images >= 0.5), 1 - images, images)


def blur_kernel_size(size: int) -> int:
    """Return the odd kernel size for views of a shorter side `size`: a tenth of it (23 at 224), at least 3."""
    return max(3, size // 10 // 2 * 2 + 1)


def blur_matrix(sigma: Tensor, chosen: Tensor, size: int, kernel_size: int) -> Tensor:
    """Make matrices that blur one axis with reflected edges; the identity for images that are not chosen.

    Args:
        sigma: (B,) width of the Gaussian in pixels.
        chosen: (B,) bool.
        size: Pixels of the axis.
        kernel_size: Taps of the kernel, an odd number, the same for both axes.

    Returns:
        (B, size, size) float32.
    """
    reach = kernel_size // 2
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    kernel = torch.softmax(-0.5 * (offset / sigma[:, None]) ** 2, dim=1)
    kernel = torch.where(chosen[:, None], kernel, (offset == 0).to(kernel.dtype))
    pixel = torch.arange(size, device=sigma.device)
    source = (pixel[None] + offset[:, None]).abs_()
    source = torch.where(source >= size, 2 * (size - 1) - source, source)
    taps = torch.nn.functional.one_hot(source, size).to(kernel.dtype)
    return torch.einsum("bk,kij->bij", kernel, taps)
