"""Every key of `hjepa fit` with its type, its default and its meaning: for --help, and for hints at a key's name."""

import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from docstring_parser import parse, parse_from_object
from lightning.pytorch import Trainer

from hjepa_pl.callbacks.collapse_monitor import CollapseMonitor
from hjepa_pl.cli.checkpoints import CheckpointConfig
from hjepa_pl.cli.run_folder import LoggingConfig
from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.losses import PREDICTION_LOSSES, REGULARIZERS, Regularizer
from hjepa_pl.masks import MASKS
from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.utils.registry import Registry


class Key(NamedTuple):
    """A key as it is typed; one inside a list (levels, datasets ...) is named after the list."""

    name: str
    hint: Any
    default: Any
    meaning: str


RUN_KEYS = (
    Key("experiment_name", str, "run", "Folder of the run under results_dir."),
    Key("results_dir", str, "results", "Where runs write their files."),
    Key("time_budget", str | None, None, '"HH:MM:SS": the run ends by then, with its schedules complete.'),
    Key("override", bool, False, "Resume although settings differ from the checkpoint's: the config's are then used."),
)
"""The keys that belong to a run rather than to model, data or Trainer."""
_LIGHTNINGS = (
    Key("config", str, None, "A YAML file, or the name of a config that the package brings; later ones overrule."),
    Key("seed_everything", int, 0, "The one seed: weights, order, views, masks."),
    Key("ckpt_path", str | None, None, "last, best, a checkpoint or a run's folder: resume it (fit), or evaluate it."),
)
GROUPS: dict[str, type] = {
    "model": HJEPALightningModule,
    "data": MultiDatasetDataModule,
    "checkpoint": CheckpointConfig,
    "logging": LoggingConfig,
    "collapse": CollapseMonitor,
    "trainer": Trainer,
}
REGISTRIES: dict[type, Registry[Any]] = {Regularizer: REGULARIZERS}
"""Base classes of the parts that a `kind` names, each with keys of its own."""
NAMED: dict[str, Registry[Any]] = {"model.prediction": PREDICTION_LOSSES, "model.masks.kind": MASKS}
"""Keys whose value names a part."""
_WORDS = {int: "int", float: "float", bool: "true|false", str: "text", type(None): "null"}


def all_keys() -> list[Key]:
    """Return every key of `hjepa fit`: of the run, the model, the data, the outputs and, last, the Trainer."""
    found = [*_LIGHTNINGS, *RUN_KEYS]
    for name, kind in GROUPS.items():
        found += [Key(name, dict, None, ""), *_keys_of(kind, name)]
    return found


def _keys_of(kind: type, prefix: str, values: Mapping[str, Any] | None = None) -> Iterator[Key]:
    """Yield the keys of a class's arguments, those of the settings classes among their types after each."""
    meanings = _meanings(kind)
    hints = typing.get_type_hints(_constructor(kind))
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
        command: `fit`, `validate`, `test` or `predict`.
        topic: Only the keys whose name holds it (`trainer`, `encoder`, `augmentation`, `lr`); '' is all but the
            Trainer's.
    """
    keys = all_keys()
    if topic:
        shown = [k for k in keys if topic.lower().lstrip("-").replace(".init_args", "") in k.name]
        end = "" if shown else f"No key holds '{topic}'; hjepa {command} --help lists them."
    else:
        shown = [k for k in keys if not k.name.startswith("trainer")]
        end = (
            f"Trainer: max_epochs, devices, precision and the others of Lightning: hjepa {command} --help trainer\n"
            f"Keys whose name holds a word: hjepa {command} --help WORD"
        )
    head = f"usage: hjepa {command} [CONFIG] [--config FILE] [--key value ...]\n"
    return "\n".join([head, *map(_shown, shown), end]).rstrip()


def _shown(key: Key) -> str:
    if key.hint is dict:
        return f"\n{key.name}:"
    default = "" if key.default is inspect.Parameter.empty or key.default is ... else f" = {_value(key.default)}"
    line = f"  --{key.name} {_kind(key.hint)}{default}"
    return "\n".join([line, *textwrap.wrap(key.meaning, 116, initial_indent=" " * 6, subsequent_indent=" " * 6)])


def _kind(hint: Any) -> str:
    """Return a type as one writes its values: whole settings are a mapping of the keys that follow."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "|".join(map(_value, parts))
    if origin in (typing.Union, types.UnionType):
        return "|".join(dict.fromkeys(_kind(p) for p in parts))
    if origin in (list, tuple):
        return f"[{', '.join('...' if p is ... else _kind(p) for p in parts)}{', ...' if origin is list else ''}]"
    if dataclasses.is_dataclass(hint) or origin is dict or hint is dict:
        return "{...}"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(_value, value))}]" if isinstance(value, list | tuple) else str(value)
