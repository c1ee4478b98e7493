"""Settings are frozen dataclasses in code and plain dicts in YAML and checkpoints; these two functions convert."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, TypeVar

from hjepa_pl.types import ConfigError

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Turn settings (dataclasses, tuples, lists of them) into dicts, lists and scalars that any loader can read."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value


def from_plain(cls: type[T], value: T | Mapping[str, Any], key: str) -> T:
    """Return `value` as the settings class `cls`; mappings are checked key by key.

    Args:
        cls: A dataclass.
        value: An instance of it, or a mapping of its fields.
        key: Name of the argument, for messages.

    Raises:
        ConfigError: If `value` is neither, or names a field that `cls` does not have.
    """
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} must be a {cls.__name__} or a mapping of its fields, got {value!r}.")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = [k for k in value if k not in names]
    if unknown:
        raise ConfigError(f"{key} does not accept {', '.join(map(repr, unknown))}; its keys are {', '.join(names)}.")
    missing = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{key} lacks the key '{missing[0]}'.")
    return cls(**{k: _coerce(hints[k], v, f"{key}.{k}") for k, v in value.items()})


def from_plain_list(cls: type[T], values: Any, key: str) -> tuple[T, ...]:
    """Return a sequence of settings as a tuple of `cls` (see `from_plain`)."""
    if isinstance(values, str | Mapping) or not hasattr(values, "__iter__"):
        raise ConfigError(f"{key} must be a list, got {values!r}.")
    return tuple(from_plain(cls, v, f"{key}[{i}]") for i, v in enumerate(values))


def _coerce(hint: Any, value: Any, key: str) -> Any:
    """Check a scalar field and turn lists into the tuples that a frozen dataclass holds."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option)
        if origin is typing.Literal and any(
            value is a or (type(value) is type(a) and value == a) for a in typing.get_args(option)
        ):
            return value
        if origin is tuple and isinstance(value, list | tuple):
            kinds = typing.get_args(option)
            kinds = kinds[:1] * len(value) if kinds[-1:] == (...,) else kinds
            if len(kinds) == len(value):
                return tuple(_coerce(kind, v, key) for kind, v in zip(kinds, value, strict=True))
        if option is type(None) and value is None:
            return None
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option is str and isinstance(value, PurePath):
            return str(value)
        if option in (bool, str) and isinstance(value, option):
            return value
        if dataclasses.is_dataclass(option) and isinstance(value, option):  # type: ignore[arg-type]
            return value
        if origin is dict and isinstance(value, Mapping):
            return dict(value)  # its keys are for the class to check
    names = " or ".join(dict.fromkeys(_describe(o) for o in options))
    raise ConfigError(f"{key} must be {names}, got {value!r}.")


def _describe(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(option)))
    if typing.get_origin(option) is tuple:
        return f"a list of {len(typing.get_args(option))} numbers"
    if typing.get_origin(option) is dict or dataclasses.is_dataclass(option):
        return "a mapping"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}.get(
        option, str(option)
    )
