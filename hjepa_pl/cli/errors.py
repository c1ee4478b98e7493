"""Errors of the parser, of Lightning and of the system, each as one sentence about the setting that caused it."""

import argparse
import ast
import dataclasses
import difflib
import errno
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import as_typed, describe, either

_LIST_KEYS = "'hjepa fit --print_config' lists the keys"
_ALIASES = {
    "fp32": "32-true", "float32": "32-true", "single": "32-true", "fp16": "bf16-mixed", "float16": "bf16-mixed",
    "half": "bf16-mixed", "bfloat16": "bf16-mixed", "amp": "bf16-mixed", "mixed": "bf16-mixed",
}  # fmt: skip
"""Names that other programs have for a value."""
_CLASSES = {"model": "HJEPALightningModule", "data": "MultiDatasetDataModule"}
_ENTRIES = {"datasets": "name", "probe": "name", "regularizers": "kind"}
"""Lists of settings, and the key that an entry must have."""
_TYPED = {
    "trainer.precision": typing.Literal["32-true", "bf16-mixed"],  # Lightning's other twelve are rejected later
    "seed_everything": int | None,
}
"""Keys that take less than their annotation says."""


def one_sentence(error: BaseException) -> str | None:
    """Return an error that a setting or the machine caused as one sentence; None if it is a defect of the program."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConfigError):
            # The exception of a worker has its traceback as text; the last line is the sentence.
            return str(seen).rstrip().splitlines()[-1].removeprefix(f"{ConfigError.__module__}.ConfigError: ")
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk is full{f' ({seen.filename})' if seen.filename else ''}; free space, then resume."
        if isinstance(seen, ModuleNotFoundError) and seen.name is None:  # raised by Lightning for an optional package
            return f"a package is missing: {first_line(seen)}."
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, argparse.ArgumentError):
        return parser_sentence(str(error))
    return None


def parser_sentence(text: str, known: Mapping[str, Any] | None = None, words: Sequence[str] = ()) -> str:
    """Return the message of an error of jsonargparse as one sentence: the key, its value and what it takes.

    Args:
        text: The message.
        known: The annotations of all keys, bounds included.
        words: The command line; the parser shortens some keys in its messages.
    """
    known = known or {}
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        name = _typed_key(found[1].split("=")[0], words)
        return f"{name} is not a key; {_hint(name, known)}."
    if found := re.search(r"does not accept (?:option|nested key) '([^']+)'", text):
        return f"'{found[1]}' is not a key; {_hint(found[1], known)}."
    if found := re.search(r"Problems parsing config: (.*)", text, re.DOTALL):
        return f"the config is not valid YAML: {' '.join(found[1].split())}."
    if found := re.search(r"Not of type \w+: (.*)", text):  # a class that the package reads itself
        return found[1]
    path = ".".join(re.findall(r'Parser key "([^"]+)"', text))
    if found := re.search(r"Option '([^']+)' is not accepted", text):
        if re.fullmatch(r"\w+:\S+", found[1]):
            return f"{path} does not accept '{found[1]}'; YAML needs a space after the colon."
        return f"{path} does not accept '{found[1]}'; {_hint(f'{path}.{found[1]}', known)}."
    if found := re.search(r"the following arguments are required: (\w+)", text):
        hint = f"add --{path}.{found[1]}=VALUE" if path == "trainer.callbacks" else _LIST_KEYS
        return f"{path} lacks the key '{found[1]}'; {hint}."
    if found := re.search(r"argument (\S+): expected one argument", text):
        name = next((w for w in words if w.startswith("--") and "=" not in w), found[1].split("/")[-1])
        return f"{name} lacks its value; write {name}=VALUE."
    if found := re.search(r"File does not exist: '([^']+)'", text):
        return f"{path}: there is no file {found[1]}."
    if path.endswith("trainer.logger"):
        return "trainer.logger takes true, false or {class_path: ...}; for Weights & Biases set logging.wandb to true."
    if path == "trainer.callbacks" and (found := re.search(r"Expected a dot import path string: (\S+)", text)):
        return (
            f"invalid `trainer.callbacks.class_path={found[1]}`: must be the name of a callback of Lightning, or the "
            "import path of your own class."
        )
    return _value_sentence(path, _innermost(text), known)


def _value_sentence(path: str, text: str, known: Mapping[str, Any]) -> str:
    """Return the sentence for a value that a key does not take.

    Args:
        path: The key.
        text: The part of the parser's message about it.
        known: The annotations of all keys.
    """
    patterns = (r"(?:Given value|Got value): (.*)$", r"Expected a dot import path string: (.*)$")
    given = next(filter(None, (re.search(pattern, text, re.MULTILINE) for pattern in patterns)), None)
    value = _as_typed(given[1]) if given else "?"
    named = re.search(r"class_path\W+(?:val=)?'([\w.]+)|^'?([\w.]+)'?$", given[1]) if given else None
    if path in _CLASSES and named:
        name = named[1] or named[2]
        return f"invalid `{path}.class_path={name}`: must be {_CLASSES[path]}, or the import path of your own class."
    hint = _TYPED.get(path, known.get(path))
    if not path or not given or hint is None:
        return first_line(text).rstrip(".") + "."
    options = list(_options(hint))
    meant = _meant(value, [option for option, literal in options if literal])
    fix = f"; did you mean {meant}?" if meant else "."
    if entry := _ENTRIES.get(path.rpartition(".")[2]):
        word = value.strip("[]")
        fix = f"; write {path}=[{{{entry}: {word if re.fullmatch(r'[a-z_0-9]+', word) else 'NAME'}}}]."
    return f"invalid `{path}={value}`: must be {either(option for option, _ in options)}{fix}"


def _options(hint: Any) -> Iterator[tuple[str, bool]]:
    """Yield what an annotation takes, in words, and whether it is a word to be typed as it is."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            yield from _options(part)
    elif origin is typing.Literal:
        yield from ((as_typed(part), True) for part in parts)
    elif origin is typing.Annotated and typing.get_origin(parts[0]) is typing.Literal:
        yield from _options(parts[0])
    elif origin is list and dataclasses.is_dataclass(parts[0]):
        yield "a list of mappings", False
    elif origin or hint in (int, float, bool, str, list, dict, type(None)) or dataclasses.is_dataclass(hint):
        yield describe(hint), False  # not the classes of Lightning that some keys of the Trainer take


def _typed_key(name: str, words: Sequence[str]) -> str:
    """Return a key as it was typed: of `--model.encoder.dpth` the parser reports `--encoder.dpth`."""
    typed = [word.partition("=")[0] for word in words]
    return next((key for key in typed if key.startswith("--") and key.endswith(f".{name.lstrip('-')}")), name)


def _as_typed(text: str) -> str:
    """Return a value of the parser's message as it is typed in a config."""
    try:
        return as_typed(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text


def _hint(name: str, known: Iterable[str]) -> str:
    """Return the hint for a key that does not exist."""
    near = nearest(name, known)
    return f"did you mean --{near}? ({_LIST_KEYS})" if near else _LIST_KEYS


def _meant(given: str, options: Sequence[str]) -> str | None:
    """Return the option that a value is similar to, if there is one."""
    word = given.strip("'\"").lower()
    word = _ALIASES.get(word, word)
    contained = [option for option in options if option.lower() in re.split(r"[_\W]+", word)]
    near = [o for o in options if o.lower() == word] or contained or difflib.get_close_matches(word, options, 1, 0.6)
    return near[0] if near else None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the existing key that is most similar to one that does not exist, by its last part.

    Args:
        name: The key as typed, with or without dashes and `init_args`.
        known: Keys that exist.
    """
    wanted = name.lstrip("-").replace("init_args.", "").replace("-", "_").lower()
    last = wanted.rpartition(".")[2]
    ends: dict[str, list[str]] = {}
    for key in known:
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    closest = [last] if last in ends else difflib.get_close_matches(last, ends, 3, 0.75)
    candidates = [key for end in closest for key in ends[end]]
    return max(candidates, key=lambda k: difflib.SequenceMatcher(None, wanted, k).ratio(), default=None)


def first_line(text: object) -> str:
    """Return the first line of a text that is not empty; the name of its type if all are."""
    lines = [line.strip(" -\t") for line in str(text).splitlines() if line.strip(" -\t")]
    return lines[0].rstrip(".") if lines else type(text).__name__


def _innermost(text: str) -> str:
    """Return the lines about the deepest key of the parser's message: those that are indented further."""
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if 'Parser key "' in line]
    if not starts:
        return text
    first = starts[-1]
    depth = len(lines[first]) - len(lines[first].lstrip())
    kept = [lines[first].split(":", 1)[1]]
    for line in lines[first + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) <= depth:
            break
        kept.append(line)
    return "\n".join(kept)
