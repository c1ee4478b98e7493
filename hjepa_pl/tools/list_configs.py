"""`hjepa configs`: the configs that come with the package."""

import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from textwrap import shorten

from hjepa_pl.cli.config_files import find_config, shipped_configs
from hjepa_pl.types import ConfigError

_HELP = """usage: hjepa configs
       hjepa configs show NAME

Lists the configs of the package, each with a line about it, or prints one. `hjepa fit NAME` runs one by its name;
those in on/ only choose the data, for a layer: hjepa fit NAME --config on/imagenet100. A folder configs/ in the working
folder comes first.

To start from one: hjepa configs show quickstart > mine.yaml, then hjepa fit mine.yaml."""


def run(args: Sequence[str]) -> int:
    """List the configs, or print one; return 0, or 2 for other words."""
    words = list(args)
    if any(word in ("-h", "--help") for word in words):
        print(_HELP)
        return 0
    try:
        print("\n".join(_list()) if not words else _show(words), flush=True)
    except ConfigError as error:
        print(f"hjepa configs: error: {error}", file=sys.stderr)
        return 2
    return 0


def _list() -> list[str]:
    """Return one line for each config: its name and what it is."""
    known = shipped_configs()
    if not known:
        raise ConfigError("the package has no configs; install it again.")
    width = max(map(len, known))
    return [f"{name:<{width}}  {_about(path)}".rstrip() for name, path in sorted(known.items(), key=_runs_first)]


def _runs_first(entry: tuple[str, Path]) -> tuple[bool, str]:
    return "/" in entry[0], entry[0]


def _about(path: Path) -> str:
    """Return the first sentence of the comment that a config begins with, in one line."""
    comments = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    sentence = " ".join(line.lstrip("# ") for line in comments).partition(". ")[0]
    return shorten(sentence.rstrip("."), 110, placeholder=" ...")


def _show(words: list[str]) -> str:
    """Return the text of the config that the words name."""
    if words[0] != "show" or len(words) != 2:
        raise ConfigError("write hjepa configs to list them, or hjepa configs show NAME to print one.")
    return Path(find_config(words[1])).read_text(encoding="utf-8").rstrip("\n")
