"""Sizes of images: one number for a square, or height and width."""

from collections.abc import Sequence

from hjepa_pl.types import ConfigError

ImgSize = int | tuple[int, int]
"""Side of a square image, or (height, width), in pixels."""


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def check_divides(size: ImgSize, patch: tuple[int, int]) -> None:
    """Refuse an image that is no whole number of patches along either side.

    Raises:
        ConfigError: Naming the nearest sizes that would do.
    """
    if not any(n % p for n, p in zip(sides(size), patch, strict=True)):
        return
    low = [n // p * p for n, p in zip(sides(size), patch, strict=True)]
    high = [n if n == of else n + p for n, of, p in zip(low, sides(size), patch, strict=True)]
    would_do = [str(pair[0] if isinstance(size, int) else pair) for pair in (low, high) if all(pair)]
    raise ConfigError(
        f"encoder.img_size {_shown(size)} is not a multiple of encoder.patch_size "
        f"{patch[0] if patch[0] == patch[1] else list(patch)}; {' or '.join(would_do)} would do."
    )


def _shown(size: object) -> str:
    """Return a size as a config holds it."""
    return repr(list(size) if isinstance(size, tuple) else size)
