"""Image sizes: one number for a square image, or height and width."""

from collections.abc import Sequence

from hjepa_pl.utils.settings import invalid
from hjepa_pl.utils.wording import as_typed

ImgSize = int | tuple[int, int]
"""Side of a square image, or (height, width), in pixels."""


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def check_divides(size: ImgSize, patch: tuple[int, int]) -> None:
    """Check that an image is a whole number of patches in height and in width.

    Args:
        size: `encoder.img_size`.
        patch: Height and width of a patch, in pixels.

    Raises:
        ConfigError: If it is not; the message names the nearest sizes that are.
    """
    if not any(n % p for n, p in zip(sides(size), patch, strict=True)):
        return
    low = [n // p * p for n, p in zip(sides(size), patch, strict=True)]
    high = [n if n == of else n + p for n, of, p in zip(low, sides(size), patch, strict=True)]
    near = [as_typed(pair[0] if isinstance(size, int) else pair) for pair in (low, high) if all(pair)]
    patch_size = as_typed(patch[0] if patch[0] == patch[1] else patch)
    raise invalid(
        "encoder.img_size", size, f"must be a multiple of encoder.patch_size={patch_size}; use {' or '.join(near)}."
    )
