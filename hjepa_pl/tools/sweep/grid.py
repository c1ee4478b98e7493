"""The grid of a sweep: keys with their values, and its cells."""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import yaml

from hjepa_pl.cli.arguments import read_words
from hjepa_pl.types import ConfigError

_SEEDS = ("seed_everything", "model.seed", "data.seed")
_FOLDERS = ("experiment_name", "results_dir")
RESUME = "a run that was cut off is resumed by itself; remove it."
"""What to do about a key that resumes a run."""
_OWN = {
    **dict.fromkeys(_SEEDS, "the seeds are those of --seeds; remove it."),
    **dict.fromkeys(_FOLDERS, "each run has a folder of its own below --out; remove it, or set --out."),
    **dict.fromkeys(("ckpt_path", "override"), RESUME),
}
"""Keys of fit that a sweep sets itself, and what to do."""


class Cell(NamedTuple):
    """One combination of the grid's values."""

    number: int
    """From 1, in the order of the grid."""
    values: dict[str, str]
    """By key, as typed."""
    label: str
    """The values by short keys, such as "lr=1e-3, levels=flat"; "all" without a grid."""

    @property
    def words(self) -> list[str]:
        """The keys as words of the command line of fit."""
        return [f"--{key}={value}" for key, value in self.values.items()]

    def run_name(self, seed: int) -> str:
        """Return the name of the folder of a run."""
        if not self.values:
            return f"seed{seed}"
        short = re.sub(r"[^\w.+=-]+", "_", self.label)[:60].strip("_")
        return f"{self.number}_{short}_seed{seed}"


def plain(name: str) -> str:
    """Return a key without its dashes and `init_args`: "model.seed" of "--model.init_args.seed"."""
    return re.sub(r"\.init_args(?=\.|$)", "", name.lstrip("-"))


def read_grid(given: Sequence[str], words: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each key of a grid.

    Args:
        given: What follows each --grid: KEY=VALUE,VALUE.
        words: The other keys of fit, each with its value as one word.

    Raises:
        ConfigError: If there is no value, an empty one or the same twice, if a key is given twice, also by another
            --grid or as one of `words`, as a whole or in part, or if it is one that a sweep sets.
    """
    grid: dict[str, list[str]] = {}
    for text in given:
        name, equals, listed = text.partition("=")
        key, values = plain(name), split_values(listed)
        if not equals or not key:
            raise ConfigError(f"--grid {text}: must be KEY=VALUE,VALUE, as --grid model.optimizer.lr=1e-3,2e-3.")
        if not all(values):
            raise ConfigError(f"invalid `--grid {text}`: a value is empty; add it, or remove the comma.")
        if key in grid:
            raise ConfigError(f"--grid {key} is given twice; list all values in one: --grid {key}=VALUE,VALUE.")
        if repeated := [value for i, value in enumerate(values) if value in values[:i]]:
            raise ConfigError(f"invalid `--grid {text}`: has the value {repeated[0]} twice; remove one.")
        grid[key] = values
    for key in grid:
        if key in _OWN:
            raise ConfigError(f"invalid `--grid {key}`: {_OWN[key]}")
        if key == "config":
            raise ConfigError("invalid `--grid config`: a grid is of keys, not of files; start a sweep for each file.")
    _check_words(words, grid)
    return grid


def _check_words(words: Sequence[str], grid: Mapping[str, Sequence[str]]) -> None:
    """Reject keys of fit that the sweep or its grid would overrule, as a whole or in part."""
    swept = [(key, owner) for owner, values in grid.items() for key in _swept(owner, values)]
    for word in words:
        name, _, value = word.partition("=")
        if plain(name) in _OWN:
            raise ConfigError(f"invalid `{word}`: {_OWN[plain(name)]}")
        for key in _typed(plain(name), value):
            for other, owner in swept:
                if _overlap(key, other):
                    raise ConfigError(f"{name} is given beside --grid {owner}, which would overrule it; remove one.")
    for (key, owner), (other, beside) in itertools.combinations(swept, 2):
        if owner != beside and _overlap(key, other):
            raise ConfigError(
                f"--grid {owner} is given beside --grid {beside}, but one is a part of the other; remove one."
            )


def _typed(key: str, value: str) -> list[str]:
    """Return what a word of fit sets: the keys of its value, if that is a mapping."""
    try:
        tree = yaml.safe_load(value)
    except yaml.YAMLError:
        tree = None
    if isinstance(tree, dict) and tree and not key.endswith("+"):
        return [
            name
            for part, inner in tree.items()
            for name in _typed(plain(f"{key}.{part}"), json.dumps(inner, default=str))
        ]
    return [f"{key}.class_path"] if key in ("model", "data") else [key]


def _swept(key: str, values: Sequence[str]) -> set[str]:
    """Return the keys that the values of a grid set: model.encoder.size of `model.encoder=tiny`."""
    if key != "model.encoder":
        return {key}
    words = read_words(["fit", "--print_config", *(f"--{key}={value}" for value in values)])[2:]
    return {plain(word.partition("=")[0]) for word in words}


def _overlap(key: str, other: str) -> bool:
    """Return True if two keys are the same, or one is a part of the other."""
    one, two = (f"{name.rstrip('+')}." for name in (key, other))
    return one.startswith(two) or two.startswith(one)


def split_values(text: str) -> list[str]:
    """Split at the commas that are not inside brackets or quotes.

    Example:
        >>> split_values("flat,[{cell: 1}, {cell: image}]")
        ['flat', '[{cell: 1}, {cell: image}]']
    """
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if letter == "," and not depth and not quote:
            parts.append("")
            continue
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in ")}]")
        parts[-1] += letter
    return [part.strip() for part in parts]


def cells_of(grid: Mapping[str, Sequence[str]]) -> list[Cell]:
    """Return the product of a grid; the values of the last key change fastest."""
    ends = [key.rpartition(".")[2] for key in grid]
    short = {key: key if ends.count(end) > 1 else end for key, end in zip(grid, ends, strict=True)}
    cells = []
    for number, chosen in enumerate(itertools.product(*grid.values()), 1):
        values = dict(zip(grid, chosen, strict=True))
        label = ", ".join(f"{short[key]}={value}" for key, value in values.items())
        cells.append(Cell(number, values, label or "all"))
    return cells
