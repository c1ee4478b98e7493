"""Checks of keys that the parser accepts although they would have no effect."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import either

_LISTS = ("levels", "regularizers", "datasets", "probe")


def check_keys_known(argv: Sequence[str], config: Any) -> None:
    """Check for abbreviated keys, unknown keys with an empty mapping, and keys that would change one entry of a list.

    Args:
        argv: The words of the command line, without the command.
        config: The parsed config.

    Raises:
        ConfigError: If there is such a key.
    """
    _check_preset(argv)
    words = iter(argv)
    for word in words:
        name, given, value = word.partition("=")
        if name in ("--config", "-c"):
            for key in _empty_keys(yaml.safe_load(Path(value if given else next(words)).read_text())):
                if not _has(config, key):
                    raise ConfigError(f"'{key}' is not a key; 'hjepa fit --print_config' lists the keys.")
        elif name.startswith("--") and (whole := _list_above(name)):
            raise ConfigError(
                f"{name} would silently change one entry of a list; pass the whole list: --{whole}='[...]'."
            )
        elif name.startswith("--") and name != "--help" and not _has(config, name[2:].rstrip("+")):
            raise ConfigError(
                f"{name} is not a key; keys cannot be abbreviated ('hjepa fit --print_config' lists them)."
            )


def check_accelerator(accelerator: Any) -> None:
    """Check that this machine has the `trainer.accelerator`.

    Raises:
        ConfigError: If it does not; the message lists those that it has.
    """
    present = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    present["gpu"] = present["cuda"] or present["mps"]
    if isinstance(accelerator, str) and not present.get(accelerator, False):
        usable = either(name for name, here in present.items() if here)
        raise ConfigError(f"invalid `trainer.accelerator={accelerator}`: must be {usable} on this machine.")


def _check_preset(argv: Sequence[str]) -> None:
    """Reject the name of a preset together with single parts of the augmentation.

    The key takes a name or a mapping, and the parser would silently drop the name or the parts.
    """
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
                f"`augmentation: {preset}` and the later keys {', '.join(tree)} exclude each other; add "
                f"`preset: {preset}` to these keys."
            )
    if preset and part:
        raise ConfigError(
            f"{part} and `augmentation: {preset}` exclude each other; write {part.rpartition('.')[0]}.preset={preset} "
            "instead of the name alone."
        )


def _list_above(name: str) -> str:
    """Return the list of settings of which a key is inside, or "": the parser would change its last entry."""
    parts = name[2:].split(".")
    lists = [i for i, part in enumerate(parts[:-1]) if part in _LISTS and parts[0] in ("model", "data")]
    return ".".join(parts[: lists[0] + 1]) if lists else ""


def _has(config: Any, key: str) -> bool:
    """Return True if a dotted key, with or without `init_args`, is in a parsed config."""
    node = config
    for part in key.split("."):
        if isinstance(node, list) and node:
            node = node[-1]  # --trainer.callbacks.key=value is about the last one
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
