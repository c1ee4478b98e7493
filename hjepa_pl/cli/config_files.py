"""Config files: those that the package brings, by name, and what no config may be, said before anything is imported."""

import difflib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hjepa_pl.types import ConfigError

_WEIGHTS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_MOST_NODES = 100_000
"""Values that a config may hold once its aliases are written out; the largest of a run has some hundred."""
_HERE = Path(__file__).parent


def _folders() -> list[Path]:
    """Return where configs lie: in the working folder, in the installed package, beside the package's source."""
    return [folder for folder in (Path("configs"), _HERE / "configs", _HERE.parent / "configs") if folder.is_dir()]


def shipped_configs() -> dict[str, Path]:
    """Return the configs at hand by name: `quickstart`, `features/sigreg`."""
    found: dict[str, Path] = {}
    for folder in _folders():
        for path in sorted(folder.rglob("*.yaml")):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def find_config(word: str) -> str:
    """Return the path of a config that is named by its path or, if it is one of the package's, by its name.

    Raises:
        ConfigError: If there is none, or it is no config.
    """
    if not Path(word).is_file() and not Path(word).is_absolute():
        known = shipped_configs()
        name = word.removeprefix("./").removeprefix("configs/").removesuffix(".yaml")
        last = [key for key in known if key.rpartition("/")[2] == name]
        if name in known or len(last) == 1:
            return str(known.get(name) or known[last[0]])
        if not Path(word).exists() and "/" not in word:
            near = difflib.get_close_matches(name, known, 1, 0.7)
            hint = f"did you mean {near[0]}?" if near else f"the package brings {', '.join(_runs(known))}."
            raise ConfigError(f"there is no config {word}; {hint}")
    refuse_other_files(word)
    return word


def _runs(known: dict[str, Path]) -> list[str]:
    """Return the configs that are runs by themselves: those of `on/` say on which data."""
    return [name for name in known if not name.startswith("on/")]


def say_runs() -> str:
    """Return the names of the package's runs, for messages."""
    return ", ".join(_runs(shipped_configs()))


def refuse_other_files(path: str) -> None:
    """Refuse what is no config at all, where the parser would hang, take one half of it, or speak of bytes.

    Raises:
        ConfigError: If the file is missing, a folder, a checkpoint, not a YAML mapping, names a key twice or unfolds
            without bounds.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{path} is a folder, not a config." if file.is_dir() else f"there is no file {path}.")
    if file.suffix in _WEIGHTS or zipfile.is_zipfile(file):
        raise ConfigError(
            "this is a checkpoint, not a config; a run's config is config.yaml in the folder above its checkpoints."
        )
    try:
        tree = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError:
        raise ConfigError("this is no text file; give a config in YAML.") from None
    except OSError as error:
        raise ConfigError(f"it cannot be read ({error.strerror}).") from None
    except yaml.YAMLError:
        return  # the parser says where
    except RecursionError:
        raise ConfigError("its mappings and lists are nested too deep for a config.") from None
    if not isinstance(tree, yaml.MappingNode):
        raise ConfigError("this is no config: a YAML mapping of keys was expected.")
    if _unfolded(tree, {}) > _MOST_NODES:
        raise ConfigError(f"its aliases (*name) unfold to more than {_MOST_NODES:,} values; write the values out.")
    for key in _twice(tree, set()):
        raise ConfigError(f"the key '{key}' is given twice in one mapping, and YAML keeps the last; remove one.")


def _parts(node: Any) -> list[Any]:
    """Return the nodes that a node of YAML holds."""
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _unfolded(node: Any, sizes: dict[int, float]) -> float:
    """Return how many values a node unfolds to, without unfolding it: an alias is the node that it names."""
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")  # until it is known: what holds itself has no end
        sizes[id(node)] = 1 + sum(_unfolded(part, sizes) for part in _parts(node))
    return sizes[id(node)]


def _twice(node: Any, seen: set[int]) -> Iterator[str]:
    """Yield the keys that stand twice in one mapping, at any depth."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        yield from (name for i, name in enumerate(names) if name in names[:i])
    for part in _parts(node):
        yield from _twice(part, seen)
