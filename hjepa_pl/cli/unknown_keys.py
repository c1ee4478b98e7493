"""Keys that the parser lets pass although no one reads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from hjepa_pl.types import ConfigError

_LISTS = ("levels", "regularizers", "datasets", "probe")


def refuse_unknown(argv: Sequence[str], config: Any) -> None:
    """Refuse the beginning of a key where the key is meant, and an unknown key that holds an empty mapping.

    Args:
        argv: The words of the command line, without the command.
        config: What the parser made of them.

    Raises:
        ConfigError: Naming the first such key.
    """
    _refuse_lost_preset(argv)
    words = iter(argv)
    for word in words:
        name, given, value = word.partition("=")
        if name in ("--config", "-c"):
            for key in _empty_keys(yaml.safe_load(Path(value if given else next(words)).read_text())):
                if not _has(config, key):
                    raise ConfigError(f"'{key}' is not a key; 'hjepa fit --print_config' lists the keys.")
        elif name.startswith("--") and (whole := _list_above(name)):
            raise ConfigError(f"{name} changes one entry of a list unsaid; give the whole list: --{whole}='[...]'.")
        elif name.startswith("--") and name != "--help" and not _has(config, name[2:].rstrip("+")):
            raise ConfigError(f"{name} is not a key; write keys out in full ('hjepa fit --print_config').")


def refuse_absent_accelerator(wanted: Any) -> None:
    """Refuse a `trainer.accelerator` that this machine does not have.

    Raises:
        ConfigError: Naming those that it has.
    """
    there = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there["gpu"] = there["cuda"] or there["mps"]
    if isinstance(wanted, str) and not there.get(wanted, False):
        usable = ", ".join(name for name, here in there.items() if here)
        raise ConfigError(f"invalid `trainer.accelerator={wanted}`: this machine can take {usable}.")


def _refuse_lost_preset(argv: Sequence[str]) -> None:
    """Refuse parts of the augmentation after, or beside, the name of a preset: the parser would drop one unsaid."""
    preset, part = "", ""
    words = iter(argv)
    for word in words:
        name, given, value = word.partition("=")
        key = name.replace(".init_args", "")
        tree: Any = None
        if name in ("--config", "-c"):
            tree = yaml.safe_load(Path(value if given else next(words)).read_text())
            for step in ("data", "init_args", "augmentation"):
                tree = tree.get(step) if isinstance(tree, dict) else None
        elif key == "--data.augmentation":
            tree = yaml.safe_load(value if given else next(words))
        elif key == "--data.augmentation.preset":
            preset = ""
        elif key.startswith("--data.augmentation."):
            part = name
        if isinstance(tree, str):
            preset = tree
        elif isinstance(tree, dict) and "preset" in tree:
            preset = ""
        elif isinstance(tree, dict) and preset:
            raise ConfigError(
                f"`augmentation: {preset}` and the parts {', '.join(tree)} that follow it exclude each other: "
                f"give `preset: {preset}` among the parts."
            )
    if preset and part:
        raise ConfigError(
            f"{part} and `augmentation: {preset}` exclude each other: "
            f"give {part.rpartition('.')[0]}.preset={preset} in place of the word."
        )


def _list_above(name: str) -> str:
    """Return the key of the list of settings that a key reaches into, or nothing: the parser takes its last entry."""
    parts = name[2:].split(".")
    found = [i for i, part in enumerate(parts[:-1]) if part in _LISTS and parts[0] in ("model", "data")]
    return ".".join(parts[: found[0] + 1]) if found else ""


def _has(config: Any, key: str) -> bool:
    """Return whether a dotted key is in a parsed config, `init_args` written or not."""
    node = config
    for part in key.split("."):
        if isinstance(node, list) and node:
            node = node[-1]  # --trainer.callbacks.key=value speaks of the last one
        if hasattr(node, "get") and part not in node and node.get("init_args") is not None:
            node = node["init_args"]
        if not hasattr(node, "keys") or part not in node:
            return False
        node = node[part]
    return True


def _empty_keys(tree: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys of empty mappings."""
    if not isinstance(tree, dict):
        return []
    if not tree:
        return [prefix] if prefix else []
    return [x for k, v in tree.items() for x in _empty_keys(v, f"{prefix}.{k}" if prefix else str(k))]
