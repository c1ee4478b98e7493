"""Arguments of the tools: their own keys, those of `hjepa fit`, and config files; error messages."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from hjepa_pl.cli.config_files import find_config
from hjepa_pl.cli.errors import one_sentence
from hjepa_pl.types import ConfigError, RunStopped


class Words(NamedTuple):
    """A command line, by kind of argument."""

    paths: list[str]
    """Arguments that are not keys."""
    own: dict[str, str]
    """The tool's own keys; a flag has the value ''."""
    fit: list[str]
    """The keys of `hjepa fit`, with their values."""


def sort_words(args: Sequence[str], own: Mapping[str, bool]) -> Words:
    """Separate a tool's own keys from those of fit.

    Args:
        args: The command line.
        own: The tool's keys; True for those that take a value.

    Raises:
        ConfigError: If one of the tool's keys lacks its value.
    """
    found, rest = Words([], {}, []), list(args)
    while rest:
        word = rest.pop(0)
        name, given, value = word.partition("=")
        if name in own and own[name] and not given and not rest:
            raise ConfigError(f"{name} needs a value.")
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


def check_one_config(tool: str, paths: Sequence[str]) -> None:
    """Check that a tool is given one config: two would be merged, and the second silently overrule the first.

    Raises:
        ConfigError: If there are more.
    """
    if len(paths) > 1:
        raise ConfigError(
            f"hjepa {tool} takes one config, not {' and '.join(paths)}; for a layer on top of {paths[0]} write "
            f"--config {paths[1]}."
        )


_YAML = (".yaml", ".yml")


def find_configs(path: str) -> tuple[list[str], list[str]]:
    """Return the runs in a file or folder, and the files of a folder that are layers for them.

    A run in a folder names its `experiment_name`; a file without one is read after another that does. A file that is
    given by itself is a run.

    Raises:
        ConfigError: If there is no such file, or a folder holds no run.
    """
    if not Path(path).exists():
        try:
            path = find_config(path)
        except ConfigError:
            raise ConfigError("no such file or folder.") from None
    if not Path(path).is_dir():
        return [path], []
    files = sorted(str(p) for p in Path(path).rglob("*") if p.suffix in _YAML and p.is_file())
    runs = [file for file in files if _is_run(file)]
    if not runs:
        raise ConfigError(
            f"the folder has no run: {'no file in it has an experiment_name' if files else 'no *.yaml in it'}."
        )
    return runs, [file for file in files if file not in runs]


def _is_run(path: str) -> bool:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return True  # reported as an error when it is read
    return isinstance(tree, dict) and "experiment_name" in tree


def layers(words: Sequence[str]) -> list[str]:
    """Return the files that are passed with --config, those of the package by name.

    Raises:
        ConfigError: If one of them is not a config.
    """
    pairs = zip(words, [*words, ""][1:], strict=True)
    named = [(w.partition("=")[2] or after) for w, after in pairs if w.partition("=")[0] in ("--config", "-c")]
    files = []
    for path in filter(None, named):
        try:
            files.append(find_config(path))
        except ConfigError as error:
            raise ConfigError(f"--config {path}: {error}") from None
    return files


def sentence(error: Exception) -> str:
    """Return the message of an expected error; raise an unexpected one."""
    message = str(error) if isinstance(error, RunStopped) else one_sentence(error)
    if message is None:
        raise error
    return message


def fail(tool: str, source: str, message: str, status: int = 2) -> int:
    """Print an error, of a config (`source`) or of the command line, and return the exit status."""
    print(f"{tool}: {source}: {message}" if source else f"hjepa {tool}: error: {message}", file=sys.stderr)
    return status
