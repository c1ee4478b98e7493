"""Every key of `hjepa fit` with its type, bounds, default and meaning: for --help and for hints in messages."""

import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from docstring_parser import parse, parse_from_object
from lightning.pytorch import Trainer

from hjepa_pl.callbacks.collapse_monitor import CollapseConfig
from hjepa_pl.cli.checkpoints import CheckpointConfig
from hjepa_pl.cli.run_folder import LoggingConfig
from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.losses import PREDICTION_LOSSES, REGULARIZERS, Regularizer
from hjepa_pl.masks import MASKS
from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.utils.registry import Registry
from hjepa_pl.utils.settings import to_plain
from hjepa_pl.utils.wording import as_typed, bounds


class Key(NamedTuple):
    """A key as it is typed; the name of one inside a list (levels, datasets ...) begins with the list's."""

    name: str
    hint: Any
    default: Any
    meaning: str


RUN_KEYS = (
    Key("experiment_name", str, "run", "Folder of the run under results_dir."),
    Key("results_dir", str, "results", "Folder of all runs."),
    Key("time_budget", str | None, None, '"HH:MM:SS": the run ends within this time, with its schedules complete.'),
    Key("override", bool, False, "Resume with the config's settings where they differ from the checkpoint's."),
)
"""Keys of the run itself, not of model, data or Trainer."""
_LIGHTNING_KEYS = (
    Key(
        "config",
        str,
        None,
        "A YAML file, or the name of a config of the package; a later one overrides.",
    ),
    Key("seed_everything", int, 0, "The seed of everything random: weights, order, views, masks."),
    Key(
        "ckpt_path",
        str | None,
        None,
        "Checkpoint to resume (fit) or evaluate: last, best, a file or a run's folder.",
    ),
)
GROUPS: dict[str, type] = {
    "model": HJEPALightningModule,
    "data": MultiDatasetDataModule,
    "checkpoint": CheckpointConfig,
    "logging": LoggingConfig,
    "collapse": CollapseConfig,
    "trainer": Trainer,
}
REGISTRIES: dict[type, Registry[Any]] = {Regularizer: REGULARIZERS}
"""Base classes of the parts that a `kind` names, each with keys of its own."""
NAMED: dict[str, Registry[Any]] = {"model.prediction": PREDICTION_LOSSES, "model.masks.kind": MASKS}
"""Keys whose value names a part."""
_WORDS = {int: "int", float: "float", bool: "true|false", str: "text", type(None): "null"}


def all_keys() -> list[Key]:
    """Return every key of `hjepa fit`: of the run, the model, the data, the outputs and, last, the Trainer."""
    keys = [*_LIGHTNING_KEYS, *RUN_KEYS]
    for name, kind in GROUPS.items():
        keys += [Key(name, dict, None, ""), *_keys_of(kind, name)]
    return keys


def _keys_of(kind: type, prefix: str, values: Mapping[str, Any] | None = None) -> Iterator[Key]:
    """Yield the keys of a class's arguments; an argument that is settings is followed by their keys."""
    meanings = _meanings(kind)
    hints = getattr(kind, "__bounds__", None) or typing.get_type_hints(_constructor(kind))
    for name, parameter in inspect.signature(kind).parameters.items():
        default = (values or {}).get(name, parameter.default)
        key = f"{prefix}.{name}"
        hint = _names(NAMED[key]) if key in NAMED else hints.get(name, parameter.annotation)
        nested = list(_settings_in(hint))
        whole = dataclasses.is_dataclass(default)
        yield Key(key, hint, ... if whole else default, meanings.get(name, ""))
        for settings in nested:
            if settings in REGISTRIES:
                yield from _keys_of_parts(REGISTRIES[settings], f"{prefix}.{name}")
            else:
                yield from _keys_of(settings, f"{prefix}.{name}", vars(default) if whole else None)


def _keys_of_parts(registry: Registry[Any], prefix: str) -> Iterator[Key]:
    """Yield `kind` and the keys of every part of a registry, once where the parts have it in common."""
    meaning = "One of these, or the import path of a class of your own."
    yield Key(f"{prefix}.kind", _names(registry), inspect.Parameter.empty, meaning)
    keys = {kind: list(_keys_of(part, prefix)) for kind, part in registry.items()}
    common = set.intersection(*({(k.name, k.default) for k in of_kind} for of_kind in keys.values()))
    yield from (k for k in next(iter(keys.values())) if (k.name, k.default) in common)
    for kind, of_kind in keys.items():
        yield from (k._replace(meaning=f"{kind}: {k.meaning}") for k in of_kind if (k.name, k.default) not in common)


def _names(registry: Registry[Any]) -> Any:
    return Literal[tuple(registry)]


def _constructor(kind: type) -> Any:
    return vars(kind)["__init__"]


def _meanings(kind: type) -> dict[str, str]:
    """Return what docstrings say of a class's arguments: of the constructor, or of the fields of a dataclass."""
    classes = [c for c in reversed(kind.__mro__) if dataclasses.is_dataclass(c)] or [kind]
    found = [p for c in classes for p in parse_from_object(c).params]
    found += parse(_constructor(kind).__doc__ or "").params
    return {p.arg_name: " ".join((p.description or "").split()) for p in found}


def _settings_in(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint
    for part in typing.get_args(hint):
        yield from _settings_in(part)


# ------------------------------------------------------------------------------------------------------------- the help


def help_text(command: str, topic: str = "") -> str:
    """Return the help of a Lightning command.

    Args:
        command: `fit`, `validate` or `test`.
        topic: Only keys with this word in their name (`trainer`, `encoder`, `lr`); '' is all except the Trainer's.
    """
    keys = all_keys()
    if topic:
        shown = [k for k in keys if topic.lower().lstrip("-").replace(".init_args", "") in k.name]
        end = "" if shown else f"No key contains '{topic}'; hjepa {command} --help lists them."
    else:
        shown = [k for k in keys if not k.name.startswith("trainer")]
        end = (
            f"Keys of Lightning's Trainer (max_epochs, devices, precision ...): hjepa {command} --help trainer\n"
            f"Keys that contain a word: hjepa {command} --help WORD"
        )
    head = f"usage: hjepa {command} [CONFIG] [--config FILE] [--key value ...]\n"
    return "\n".join([head, *map(_entry, shown), end]).rstrip()


def _entry(key: Key) -> str:
    if key.hint is dict:
        return f"\n{key.name}:"
    default = "" if key.default in (inspect.Parameter.empty, ...) else f" = {as_typed(to_plain(key.default))}"
    line = f"  --{key.name} {_kind(key.hint)}{default}"
    return "\n".join([line, *textwrap.wrap(key.meaning, 116, initial_indent=" " * 6, subsequent_indent=" " * 6)])


def _kind(hint: Any) -> str:
    """Return a type as text: "int >= 1|null"; settings are "{...}", and their keys follow."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{_kind(parts[0])}{bounds(parts[1:])}"
    if origin is Literal:
        return "|".join(map(as_typed, parts))
    if origin in (typing.Union, types.UnionType):
        return "|".join(dict.fromkeys(_kind(p) for p in parts))
    if origin in (list, tuple):
        return f"[{', '.join('...' if p is ... else _kind(p) for p in parts)}{', ...' if origin is list else ''}]"
    if dataclasses.is_dataclass(hint) or origin is dict or hint is dict:
        return "{...}"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
