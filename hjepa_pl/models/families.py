"""Encoder families: the registry, and how an encoder is made and measured."""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch

from hjepa_pl.models.base import Encoder
from hjepa_pl.models.config import EncoderConfig
from hjepa_pl.models.encoder import VisionEncoder
from hjepa_pl.models.pretrained import without_pretrained
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.registry import Registry
from hjepa_pl.utils.settings import invalid
from hjepa_pl.utils.sizes import sides

ENCODERS: Registry[type[Encoder]] = Registry("encoder.family", {"vit": VisionEncoder})
"""Encoder families by name."""
_READ_BY_ALL = frozenset({"family", "options", "img_size", "in_chans", "attention"})


class EncoderShape(NamedTuple):
    """Shape of an encoder, known before it has weights."""

    grid: tuple[int, int]
    """Rows and columns of patches."""
    depth: int
    """Number of blocks."""
    embed_dim: int
    """Width of the tokens."""


def build_encoder(config: EncoderConfig, inner: Sequence[int] = (), affine: Sequence[int] = ()) -> Encoder:
    """Make the encoder of a config.

    Args:
        config: Family and architecture.
        inner: Blocks before the last whose output is read.
        affine: Those of `inner` whose norm has parameters.

    Raises:
        ConfigError: If there is no such family, or it does not take the settings.
    """
    return _family(config)(config, inner, affine, **(config.options or {}))


def measure(config: EncoderConfig) -> EncoderShape:
    """Return the shape of an encoder, from one without storage (meta device).

    Raises:
        ConfigError: As `build_encoder`.
        ValueError: If the patches of the family do not make up the image.
    """
    with torch.device("meta"), without_pretrained():
        encoder = build_encoder(config)
    covered = tuple(n * p for n, p in zip(encoder.grid, encoder.patch_size, strict=True))
    if covered != sides(config.img_size):
        raise ValueError(
            f"{type(encoder).__name__}: grid {encoder.grid} times patch_size {encoder.patch_size} is {covered}, but "
            f"img_size is {config.img_size}."
        )
    return EncoderShape(encoder.grid, encoder.depth, encoder.embed_dim)


def _family(config: EncoderConfig) -> type[Encoder]:
    """Return the class of a config's family, after a check that it reads all that is set."""
    family = ENCODERS.find(config.family)
    if not (isinstance(family, type) and issubclass(family, Encoder)):
        raise invalid("encoder.family", config.family, "must be a subclass of hjepa_pl.models.Encoder.")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in family.keys | _READ_BY_ALL and value != field.default:
            raise invalid(
                f"encoder.{field.name}", value, f"has no effect with encoder.family={config.family}; remove it."
            )
    takes = list(inspect.signature(family).parameters)[3:]  # after config, inner, affine
    for option in config.options or {}:
        if option not in takes:
            known = f"its options are {', '.join(takes)}" if takes else "it has no options"
            raise ConfigError(
                f"encoder.options does not accept '{option}' with encoder.family={config.family}; {known}."
            )
    return family
