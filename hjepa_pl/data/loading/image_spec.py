"""What every image of a run is brought to."""

from collections.abc import Sequence
from typing import NamedTuple

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import as_typed
from hjepa_pl.utils.sizes import ImgSize


class ImageSpec(NamedTuple):
    """Size, channels, and the statistics that images are normalised with."""

    size: ImgSize
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def geometry(
    size: ImgSize | None, channels: int | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> ImageSpec:
    """Return what images are brought to, with ImageNet's statistics for colour, or .5 and .25 for grey, by default.

    Raises:
        ConfigError: If size or channels are not known, or the statistics are not one number per channel.
    """
    if size is None or channels is None:
        raise ConfigError("`img_size` and `in_chans` are not known yet: set them, or call setup first.")
    if channels not in (1, 3):
        raise ConfigError(
            f"`in_chans={channels}` is refused: images have 1 or 3 channels, so set encoder.in_chans to 1 or 3."
        )
    check_statistics(mean, std, channels)
    mean = mean or ((0.5,) if channels == 1 else IMAGENET_DEFAULT_MEAN)
    std = std or ((0.25,) if channels == 1 else IMAGENET_DEFAULT_STD)
    return ImageSpec(size, channels, tuple(mean), tuple(std))


def check_statistics(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int | None) -> None:
    """Check that mean and standard deviation are one number per channel.

    Raises:
        ConfigError: If one of them is not.
    """
    for key, values in (("mean", mean), ("std", std)):
        if values is not None and channels is not None and len(values) != channels:
            raise ConfigError(
                f"invalid `data.{key}={as_typed(values)}`: must be {channels} number(s), one per channel of in_chans."
            )
