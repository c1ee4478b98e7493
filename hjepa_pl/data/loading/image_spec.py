"""The images of a run: their size, channels and normalization, most of which the encoder decides."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.sizes import ImgSize, sides
from hjepa_pl.utils.wording import as_typed

if TYPE_CHECKING:  # an encoder is loaded without Lightning
    from lightning.pytorch import Trainer


class ImageSpec(NamedTuple):
    """Size, channels, and the statistics that images are normalized with."""

    size: ImgSize
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def image_spec(
    size: ImgSize | None, channels: int | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> ImageSpec:
    """Return the spec of a run's images. By default color has ImageNet's statistics, and gray .5 and .25.

    Raises:
        ConfigError: If size or channels are unknown, or the statistics are not one number per channel.
    """
    if size is None or channels is None:
        raise ConfigError("`img_size` and `in_chans` are not known yet; set them, or call setup first.")
    if channels not in (1, 3):
        raise ConfigError(f"invalid `in_chans={channels}`: must be 1 or 3, the channels of images (encoder.in_chans).")
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


def of_module(trainer: "Trainer | None", key: str) -> Any:
    """Return an attribute of the Trainer's module, None without one."""
    return getattr(getattr(trainer, "lightning_module", None), key, None)


def of_encoder(trainer: "Trainer | None", key: str, value: Any) -> Any:
    """Return `img_size` or `in_chans` of the module's encoder, or the data module's own `value` without an encoder.

    Raises:
        ConfigError: If both are set and differ, or neither is set.
    """
    encoders = of_module(trainer, key)
    if value is None and encoders is None:
        raise ConfigError(f"invalid `data.{key}=null`: must be set, as the module has no `{key}`.")
    if value is None:
        return encoders
    if encoders is not None and sides(encoders) != sides(value):
        raise ConfigError(
            f"invalid `data.{key}={as_typed(value)}`: must be the encoder's {as_typed(encoders)}; remove it, as "
            "the data module takes it from the encoder."
        )
    return value
