"""The words of a tool's command line: its own keys, those of `hjepa fit`, and paths."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hjepa_pl.types import ConfigError


class Words(NamedTuple):
    """A command line, sorted."""

    paths: list[str]
    """Those that are no key."""
    own: dict[str, str]
    """The tool's own keys; a flag has the value ''."""
    fit: list[str]
    """The keys of `hjepa fit`, with their values."""


def sort_words(args: Sequence[str], own: Mapping[str, bool]) -> Words:
    """Tell a tool's own keys from those of fit.

    Args:
        args: The words.
        own: The tool's keys; whether each takes a value.

    Raises:
        ConfigError: If one of the tool's keys lacks its value.
    """
    found, rest = Words([], {}, []), list(args)
    while rest:
        word = rest.pop(0)
        name, given, value = word.partition("=")
        if name in own and own[name] and not given and not rest:
            raise ConfigError(f"{name} lacks its value.")
        if own.get(name):
            found.own[name] = value if given else rest.pop(0)
        elif word in own:
            found.own[word] = ""
        elif not word.startswith("-"):
            found.paths.append(word)
        else:
            found.fit.append(word)
            if not given and rest and not rest[0].startswith("--"):
                found.fit.append(rest.pop(0))
    return found
