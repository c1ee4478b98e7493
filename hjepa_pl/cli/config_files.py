"""Config files: those of the package by name, and checks before anything heavy is imported."""

import difflib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hjepa_pl.types import ConfigError

_WEIGHTS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_MAX_NODES = 100_000
"""Maximum number of values of a config with its aliases expanded; that of a run has some hundred."""
_PACKAGE = Path(__file__).parents[1]


def _folders() -> list[Path]:
    """Return the folders of configs: in the working folder, the installed package, and the repository."""
    return [
        folder for folder in (Path("configs"), _PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()
    ]


def shipped_configs() -> dict[str, Path]:
    """Return the paths of the package's configs by name: `quickstart`, `features/sigreg`."""
    configs: dict[str, Path] = {}
    for folder in _folders():
        for path in sorted(folder.rglob("*.yaml")):
            configs.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return configs


def find_config(word: str) -> str:
    """Return the path of a config.

    Args:
        word: A path, or the name of a config of the package.

    Raises:
        ConfigError: If there is no such file, or it is not a config.
    """
    if not Path(word).is_file() and not Path(word).is_absolute():
        known = shipped_configs()
        name = word.removeprefix("./").removeprefix("configs/").removesuffix(".yaml")
        last = [key for key in known if key.rpartition("/")[2] == name]
        if name in known or len(last) == 1:
            return str(known.get(name) or known[last[0]])
        if not Path(word).exists() and "/" not in word:
            near = difflib.get_close_matches(name, known, 1, 0.7)
            hint = f"did you mean {near[0]}?" if near else f"the package has {', '.join(_runs(known))}."
            raise ConfigError(f"there is no config {word}; {hint}")
    check_config_file(word)
    return word


def _runs(known: dict[str, Path]) -> list[str]:
    """Return the configs that are complete runs; those in `on/` only choose the data."""
    return [name for name in known if not name.startswith("on/")]


def list_configs() -> str:
    """Return the names of the package's configs that are complete runs, for messages."""
    return ", ".join(_runs(shipped_configs()))


def check_config_file(path: str) -> None:
    """Check that a file is a config; of some others the parser would hang, or read one half.

    Raises:
        ConfigError: If the file is missing, a folder, a checkpoint or not a YAML mapping, has a key twice, or has
            aliases that expand without bounds.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{path} is a folder, not a config." if file.is_dir() else f"there is no file {path}.")
    if file.suffix in _WEIGHTS or zipfile.is_zipfile(file):
        raise ConfigError(
            "this is a checkpoint, not a config; use config.yaml in the folder above the checkpoints of a run."
        )
    try:
        tree = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        raise ConfigError("this is not a text file; use a config in YAML.") from None
    except OSError as error:
        raise ConfigError(f"it cannot be read ({error.strerror}).") from None
    except yaml.YAMLError:
        return  # the parser names the line
    except RecursionError:
        raise ConfigError("its mappings and lists are nested too deeply for a config.") from None
    if not isinstance(tree, yaml.MappingNode):
        raise ConfigError("this is not a config: it must be a YAML mapping of keys.")
    if _expanded_size(tree, {}) > _MAX_NODES:
        raise ConfigError(f"its aliases (*name) expand to more than {_MAX_NODES:,} values; write the values out.")
    for key in _duplicates(tree, set()):
        raise ConfigError(f"the key '{key}' is twice in one mapping, and YAML would use the last; remove one.")


def _children(node: Any) -> list[Any]:
    """Return the child nodes of a YAML node."""
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _expanded_size(node: Any, sizes: dict[int, float]) -> float:
    """Return the number of values of a node with its aliases expanded, without expanding them."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")  # while it is computed: a node that contains itself is infinite
        sizes[id(node)] = 1 + sum(_expanded_size(part, sizes) for part in _children(node))
    return sizes[id(node)]


def _duplicates(node: Any, seen: set[int]) -> Iterator[str]:
    """Yield the keys that are twice in one mapping, at any depth."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        yield from (name for i, name in enumerate(names) if name in names[:i])
    for part in _children(node):
        yield from _duplicates(part, seen)
