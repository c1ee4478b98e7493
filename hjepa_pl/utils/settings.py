"""Settings: frozen dataclasses whose annotations hold types and bounds; read from mappings, stored as mappings."""

import copy
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Annotated, Any, NamedTuple, TypeVar, dataclass_transform

import annotated_types as at
from pydantic import AfterValidator, BeforeValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import as_typed, describe

T = TypeVar("T")

Positive = Annotated[float, at.Gt(0), at.Lt(float("inf"))]
"""A number above 0."""
NonNegative = Annotated[float, at.Ge(0), at.Lt(float("inf"))]
"""A number of at least 0."""
Fraction = Annotated[float, at.Ge(0), at.Le(1)]
"""A number in [0, 1]."""
Count = Annotated[int, at.Ge(1)]
"""A whole number of at least 1."""
Pair = Annotated[tuple[T, T], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
"""Two values; a list is taken too."""
PathText = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, PurePath) else value)]
"""A path as text, as a config holds it; `pathlib`'s are taken too."""


class Hint(NamedTuple):
    """What a message adds to "must be ...": metadata of a field, as in `Annotated[float, Gt(0), Hint("try 3")]`."""

    text: str


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("descending")
    return pair


AreaRange = Annotated[
    Pair[Annotated[float, at.Gt(0), at.Le(1)]], AfterValidator(_ascending), Hint("the smaller one first")
]
"""Smallest and largest fraction of an area."""
PositiveRange = Annotated[Pair[Positive], AfterValidator(_ascending), Hint("the smaller one first")]
"""Smallest and largest of positive numbers."""
PositiveFraction = Annotated[float, at.Gt(0), at.Le(1)]
"""A number in (0, 1]."""
Name = Annotated[str, at.MinLen(1), Hint("at least one character")]
"""A text of at least one character."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(key: str, entry: str = "") -> Callable[[type[T]], type[T]]:
    """Make a class of annotated fields a frozen pydantic dataclass whose errors are one sentence.

    The annotations hold the bounds (`depth: Annotated[int, Ge(1)] | None = None`), `__post_init__` rejects
    combinations of fields. jsonargparse is shown the types without the bounds, so that there is one message for a value
    out of bounds, whether it comes from a config or from Python.

    Args:
        key: The key that holds the settings, as it is typed (`encoder`, `datasets`), for messages.
        entry: What an entry of a list of such settings is ("dataset"): messages end with it and the entry's `name`.

    Raises:
        ConfigError: By the class, on construction with a field that it does not have or a value that it cannot have.
    """

    def make(cls: type[T]) -> type[T]:
        _restore_bounds(cls)
        hints = typing.get_type_hints(cls, include_extras=True)
        fields = {name: hint for name, hint in hints.items() if typing.get_origin(hint) is not typing.ClassVar}
        config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, use_attribute_docstrings=True)
        made: Any = pydantic_dataclass(cls, frozen=True, kw_only=True, config=config)
        construct = made.__init__

        def init(self: Any, **given: Any) -> None:
            try:
                construct(self, **given)
            except ValidationError as error:
                sentence = _sentence(key, fields, given, error)
                raise ConfigError(in_entry(sentence, entry, given.get("name")) if entry else sentence) from None

        init.__name__, init.__qualname__ = "__init__", f"{cls.__qualname__}.__init__"
        plain = {name: _plain(hint) for name, hint in fields.items()}
        made.__signature__ = inspect.Signature(
            [p.replace(annotation=plain[p.name]) for p in inspect.signature(made).parameters.values()]
        )
        made.__init__, init.__annotations__, made.__annotations__ = init, plain | {"return": None}, plain
        made.__dataclass_fields__ = {
            n: copy.copy(f) for n, f in made.__dataclass_fields__.items()
        }  # a base has them too
        for field in dataclasses.fields(made):
            field.type = plain[field.name]
        made.__bounds__ = fields
        return typing.cast(type[T], made)

    return make


def _restore_bounds(cls: type) -> None:
    """Give a subclass of settings the inherited fields with their bounds, which their class shows without."""
    own = dict(vars(cls).get("__annotations__", {}))
    inherited: dict[str, Any] = {}
    for base in reversed(cls.__mro__[1:]):
        inherited |= vars(base).get("__bounds__", {})
    cls.__annotations__ = {**{name: hint for name, hint in inherited.items() if name not in own}, **own}


def to_plain(value: Any) -> Any:
    """Turn settings (dataclasses, tuples, lists of them) into dicts, lists and scalars that any loader can read.

    Of a part of a registry, the first key is its class's `kind`.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return plain if "kind" in plain or not hasattr(value, "kind") else {"kind": value.kind, **plain}
    if isinstance(value, Mapping):
        return {k: to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value


def from_plain(cls: type[T], value: T | Mapping[str, Any], key: str) -> T:
    """Return `value` as the settings class `cls`.

    Args:
        cls: A class made by `settings`.
        value: An instance of it, or a mapping of its fields.
        key: Name of the argument, for messages.

    Raises:
        ConfigError: If `value` is neither, or not accepted by `cls`.
    """
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"invalid `{key}={as_typed(value)}`: must be a mapping of {', '.join(_names(cls))}.")
    return cls(**{str(k): v for k, v in value.items()})


def from_plain_list(cls: type[T], values: Any, key: str) -> tuple[T, ...]:
    """Return a sequence of settings as a tuple of `cls` (see `from_plain`)."""
    if isinstance(values, str | Mapping) or not hasattr(values, "__iter__"):
        raise ConfigError(f"invalid `{key}={as_typed(values)}`: must be a list.")
    return tuple(from_plain(cls, value, key) for value in values)


def invalid(key: str, value: Any, problem: str) -> ConfigError:
    """Return the error of a rejected setting.

    Args:
        key: The key as it is typed, without `init_args`.
        value: Its value.
        problem: What is wrong, and how to fix it: "must be ...", or "has no effect with ...; remove it.".

    Example:
        >>> print(invalid("encoder.rope_theta", 50.0, "has no effect with encoder.position=learned; remove it."))
        invalid `encoder.rope_theta=50`: has no effect with encoder.position=learned; remove it.
    """
    return ConfigError(f"invalid `{key}={as_typed(value)}`: {problem}")


def in_entry(sentence: str, entry: str, name: object) -> str:
    """Return a message that ends with the entry of a list which it is about: "... (dataset cifar10)."."""
    return f"{sentence.removesuffix('.')} ({entry} {name})." if isinstance(name, str) and name else sentence


# ------------------------------------------------------------------------------------------------------------- messages


def _sentence(key: str, fields: Mapping[str, Any], given: Mapping[str, Any], error: ValidationError) -> str:
    """Return the first of a validation's errors as a sentence that names the key, its value and what it takes."""
    unknown = ("unexpected_keyword_argument", "extra_forbidden")
    first = min(error.errors(), key=lambda e: e["type"] not in unknown)  # a misspelled key is missing too
    inner = first.get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):  # of `__post_init__`
        return str(inner)
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] in unknown:
        return f"{key} does not accept '{name}'; its keys are {', '.join(fields)}."
    if name in fields and name not in given:
        return f"{key} lacks the key '{name}'."
    if name not in fields:
        return f"invalid `{key}`: {first['msg']}."
    hints = _hints(fields[name])
    value = given[name]
    shown = (
        f"{value:.1f}"
        if isinstance(value, float) and value.is_integer() and _wants_int(fields[name])
        else as_typed(value)
    )
    return f"invalid `{key}.{name}={shown}`: must be {'; '.join([describe(fields[name]), *hints])}."


def _wants_int(annotation: Any) -> bool:
    """Return True if whole numbers are taken and floats are not, so that 2.0 is to be told from 2."""
    return "a whole number" in describe(annotation) and "a number" not in describe(annotation)


def _hints(annotation: Any) -> list[str]:
    """Return the texts of an annotation's hints, at any depth."""
    return [
        text
        for part in typing.get_args(annotation)
        for text in ([part.text] if isinstance(part, Hint) else _hints(part))
    ]


def _plain(hint: Any) -> Any:
    """Return an annotation without its metadata, at any depth."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _plain(parts[0])
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(lambda a, b: a | b, map(_plain, parts))
    if origin in (tuple, list, dict):
        return origin[tuple(p if p is ... else _plain(p) for p in parts)]
    return hint


def _names(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]
