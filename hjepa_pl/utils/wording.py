"""Wording of messages: values as they are typed, and what a type with bounds accepts."""

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import annotated_types as at


def as_typed(value: Any) -> str:
    """Return a value as it is typed in a config."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_typed, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {as_typed(v)}' for k, v in value.items())}}}"
    if isinstance(value, str):
        return f"'{value}'" if re.fullmatch(r"|true|false|null|[-+]?[\d.]+(e[-+]?\d+)?", value) else value
    return f"{value:g}" if isinstance(value, float) and value == float(f"{value:g}") else str(value)


def describe(hint: Any) -> str:
    """Return what values a field takes, in words: "a whole number >= 1 or null" of `Annotated[int, Ge(1)] | None`.

    Args:
        hint: The annotation, bounds included.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return describe(parts[0]) + bounds(parts[1:])
    if origin in (typing.Union, types.UnionType):
        return either(option for part in parts for option in _options(part))
    if origin is typing.Literal:
        return either(map(as_typed, parts))
    if origin is tuple:
        return _sequence(parts)
    if origin is list:
        return "a list"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a mapping"
    named = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return named.get(hint, getattr(hint, "__name__", str(hint)))


def bounds(metadata: Iterable[Any]) -> str:
    """Return the bounds in an annotation's metadata as text: " >= 1", " in (0, 1]", or "" without any."""
    metadata = list(metadata)
    low = next((m for m in metadata if isinstance(m, at.Gt | at.Ge)), None)
    high = next((m for m in metadata if isinstance(m, at.Lt | at.Le)), None)
    if isinstance(high, at.Lt) and high.lt == float("inf"):
        high = None
    lower = "" if low is None else as_typed(low.gt if isinstance(low, at.Gt) else low.ge)
    upper = "" if high is None else as_typed(high.lt if isinstance(high, at.Lt) else high.le)
    if low is not None and high is not None:
        left, right = "(" if isinstance(low, at.Gt) else "[", ")" if isinstance(high, at.Lt) else "]"
        return f" in {left}{lower}, {upper}{right}"
    if low is not None:
        return f" {'>' if isinstance(low, at.Gt) else '>='} {lower}"
    return "" if high is None else f" {'<' if isinstance(high, at.Lt) else '<='} {upper}"


def either(options: Iterable[str]) -> str:
    """Return alternatives as text: "a, b or c"."""
    *first, last = dict.fromkeys(options)
    return f"{', '.join(first)} or {last}" if first else last


def _sequence(parts: tuple[Any, ...]) -> str:
    """Return a tuple in words: "a list of 2 numbers > 0"."""
    if parts[-1:] == (...,):
        return f"a list of {_plural(describe(parts[0]))}"
    kinds = list(dict.fromkeys(map(describe, parts)))
    return (
        f"a list of {len(parts)} {_plural(kinds[0])}"
        if len(kinds) == 1
        else f"a list of {len(parts)} values: {', '.join(map(describe, parts))}"
    )


def _plural(kind: str) -> str:
    return re.sub(r"^a (whole number|number|list|mapping)\b", r"\1s", kind)


def _options(hint: Any) -> list[str]:
    """Return the alternatives that an annotation has: one for each value of a `Literal`."""
    return list(map(as_typed, typing.get_args(hint))) if typing.get_origin(hint) is typing.Literal else [describe(hint)]
