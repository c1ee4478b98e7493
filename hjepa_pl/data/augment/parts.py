"""Registry of the augmentation parts that change pixels."""

from collections.abc import Mapping
from typing import Any

from hjepa_pl.data.augment.affine import Affine
from hjepa_pl.data.augment.blur import Blur
from hjepa_pl.data.augment.color_parts import Gray, Jitter, Solarize
from hjepa_pl.data.augment.part import Part
from hjepa_pl.data.augment.rand_augment import RandAugment, ThreeAugment
from hjepa_pl.data.augment.random_erasing import RandomErasing
from hjepa_pl.functional.counters import Stream
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.registry import Registry
from hjepa_pl.utils.wording import as_typed

PARTS: Registry[type[Part]] = Registry(
    "augmentation.extra",
    {
        "affine": Affine,
        "rand_augment": RandAugment,
        "three_augment": ThreeAugment,
        "jitter": Jitter,
        "gray": Gray,
        "solarize": Solarize,
        "blur": Blur,
        "erase": RandomErasing,
    },
)
"""In the order in which they are applied; those of `augmentation.extra` follow `solarize`.

A part whose keys are fields of `AugmentationConfig` is set by them, others by `augmentation.extra`.
"""
_FIRST_STREAM, _STREAMS = 128, 256
"""Streams of parts outside the package."""


def make_parts(values: Mapping[str, Any]) -> tuple[Part, ...]:
    """Return the parts that are on, in the order of `PARTS`, then those of `extra`.

    Args:
        values: The fields of an `AugmentationConfig`.

    Raises:
        ConfigError: If an entry of `extra` is not a part, has no effect, or uses another part's random numbers.
    """
    own = [
        part(**{key: values[key] for key in part.clean()})
        for part in PARTS.values()
        if part.clean().keys() <= set(values)
    ]
    extra = [_extra(name, value, set(values)) for name, value in (values["extra"] or {}).items()]
    _check_streams(dict(zip(values["extra"] or {}, extra, strict=True)))
    return tuple(part for part in [*own, *extra] if part.on)


def _extra(name: str, value: Any, keys: set[str]) -> Part:
    """Return a part of `augmentation.extra`."""
    kind = PARTS.find(name)
    key = f"augmentation.extra.{name}={as_typed(value)}"
    if not isinstance(kind, type) or not issubclass(kind, Part):
        raise ConfigError(f"invalid `{key}`: must be the import path of a subclass of hjepa_pl.data.Part.")
    if kind.clean().keys() <= keys:
        raise ConfigError(f"invalid `{key}`: is set by a key of its own; use augmentation.{next(iter(kind.clean()))}.")
    try:
        part = kind.of(value)
    except TypeError as error:
        raise ConfigError(f"invalid `{key}`: {error}.") from None
    if not part.on:
        raise ConfigError(f"invalid `{key}`: has no effect; remove it.")
    return part


def _check_streams(extra: Mapping[str, Part]) -> None:
    """Reject random numbers that two parts would share."""
    users: dict[int, str] = {}
    for name, part in extra.items():
        for stream in part.numbers:
            if isinstance(stream, Stream) or not _FIRST_STREAM <= stream < _STREAMS:
                raise ConfigError(
                    f"invalid `augmentation.extra.{name}`: uses the random stream {int(stream)}; use a number from "
                    f"{_FIRST_STREAM} to {_STREAMS - 1}."
                )
            if stream in users:
                raise ConfigError(
                    f"invalid `augmentation.extra.{name}`: uses the random stream {stream} of {users[stream]}; use "
                    f"another number from {_FIRST_STREAM} to {_STREAMS - 1}."
                )
            users[stream] = name
