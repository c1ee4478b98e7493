"""One sentence out of what the parser, Lightning or the system say of a setting they refuse."""

import argparse
import difflib
import errno
import re
from collections.abc import Iterable, Sequence

from hjepa_pl.types import ConfigError

_LOOK = "'hjepa fit --print_config' lists the keys"
_ALIASES = {
    "fp32": "32-true", "float32": "32-true", "single": "32-true", "fp16": "bf16-mixed", "float16": "bf16-mixed",
    "half": "bf16-mixed", "bfloat16": "bf16-mixed", "amp": "bf16-mixed", "mixed": "bf16-mixed",
}  # fmt: skip
"""Other programs' names of values."""
_CLASSES = {"model": "HJEPALightningModule", "data": "MultiDatasetDataModule"}
_ENTRIES = {"datasets": "name", "probe": "name", "regularizers": "kind"}
"""Lists of settings, and the key that an entry must have."""
_TYPES = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
    "<class 'NoneType'>": "null",
    "<class 'list'>": "a list",
}


def refusal(error: BaseException) -> str | None:
    """Return the sentence for an error that a setting or the machine caused; None if it is a defect of the program."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConfigError):
            # A worker's exception arrives with its traceback as text; the sentence is its last line.
            return str(seen).rstrip().splitlines()[-1].removeprefix(f"{ConfigError.__module__}.ConfigError: ")
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk is full{f' ({seen.filename})' if seen.filename else ''}; free space, then resume."
        if isinstance(seen, ModuleNotFoundError) and seen.name is None:  # Lightning's: a part needs what is not there
            return f"a package is missing: {first_line(seen)}."
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, argparse.ArgumentError):
        return parser_sentence(str(error))
    return None


def parser_sentence(text: str, known: Sequence[str] = ()) -> str:
    """Return the sentence in jsonargparse's nested message: which key, what it was given, what it takes.

    Args:
        text: The message.
        known: Every key that there is, for a hint at the one that was meant.
    """
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        name = found[1].split("=")[0]
        return f"{name} is not a key; {_hint(name, known)}."
    if found := re.search(r"does not accept (?:option|nested key) '([^']+)'", text):
        return f"'{found[1]}' is not a key; {_hint(found[1], known)}."
    if found := re.search(r"Problems parsing config: (.*)", text, re.DOTALL):
        return f"the config is not valid YAML: {' '.join(found[1].split())}."
    if found := re.search(r"Not of type \w+: (.*)", text):  # a class that the package reads itself
        return found[1]
    path = ".".join(re.findall(r'Parser key "([^"]+)"', text))
    if found := re.search(r"Option '([^']+)' is not accepted", text):
        return f"{path} does not accept '{found[1]}'; {_hint(f'{path}.{found[1]}', known)}."
    if found := re.search(r"the following arguments are required: (\w+)", text):
        way = f"add --{path}.{found[1]}=VALUE" if path == "trainer.callbacks" else _LOOK
        return f"{path} lacks the key '{found[1]}'; {way}."
    if found := re.search(r"argument (\S+): expected one argument", text):
        return f"{found[1].split('/')[-1]} lacks its value; write {found[1].split('/')[-1]}=VALUE."
    if found := re.search(r"File does not exist: '([^']+)'", text):
        return f"{path}: there is no file {found[1]}."
    if path.endswith("trainer.logger"):
        return "trainer.logger takes true, false or {class_path: ...}; for Weights & Biases set logging.wandb to true."
    innermost = _innermost(text)
    found_kinds = re.findall(r"(?:Expected an? |Not a valid )(.+?)(?:\. Got value: .*)?$", innermost, re.MULTILINE)
    expected = [_describe(e, innermost) for e in found_kinds if not e.startswith("path but")]
    given = re.search(r"(?:Given value|Got value): (.*)$", innermost, re.MULTILINE)
    said = given[1] if given else ""
    if path in _CLASSES and (named := re.search(r"class_path\W+(?:val=)?'([\w.]+)|^'?([\w.]+)'?$", said)):
        name = named[1] or named[2]
        return f"invalid `{path}.class_path={name}`: must be {_CLASSES[path]}, or the import path of your own class."
    if path == "trainer.precision":
        expected = ["'32-true'", "'bf16-mixed'"]  # Lightning's other twelve are refused later
    if path and expected:
        kinds = " or ".join(dict.fromkeys(expected))
        meant = _meant(given[1], re.findall(r"'([^']+)'", kinds)) if given else None
        hint = f"; did you mean {meant}?" if meant else "."
        if entry := _ENTRIES.get(path.rpartition(".")[2]):
            word = given[1].strip("'[]") if given else ""
            hint = f"; write {path}=[{{{entry}: {word if re.fullmatch(r'[a-z_0-9]+', word) else 'NAME'}}}]."
        return f"{path} must be {kinds}{f', got {given[1]!r}' if given else ''}{hint}"
    return first_line(innermost if path else text).rstrip(".") + "."


def _hint(name: str, known: Sequence[str]) -> str:
    """Return the way out after a key that there is not."""
    near = nearest(name, known)
    return f"did you mean --{near}? ({_LOOK})" if near else _LOOK


def _meant(given: str, options: Sequence[str]) -> str | None:
    """Return the option that a value was meant to be, if it says enough."""
    word = given.strip("'\"").lower()
    word = _ALIASES.get(word, word)
    held = [option for option in options if option.lower() in re.split(r"[_\W]+", word)]
    near = [o for o in options if o.lower() == word] or held or difflib.get_close_matches(word, options, 1, 0.6)
    return near[0] if near else None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the key that was meant by one that does not exist: of the same last part, or of one nearly the same.

    Args:
        name: The key as it was typed, dashes and `init_args` or not.
        known: Keys that exist.
    """
    wanted = name.lstrip("-").replace("init_args.", "").replace("-", "_").lower()
    last = wanted.rpartition(".")[2]
    ends: dict[str, list[str]] = {}
    for key in known:
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    closest = [last] if last in ends else difflib.get_close_matches(last, ends, 3, 0.75)
    found = [key for end in closest for key in ends[end]]
    # Of several, the one that is typed most alike, group and all.
    return max(found, key=lambda k: difflib.SequenceMatcher(None, wanted, k).ratio(), default=None)


def first_line(text: object) -> str:
    """Return the first line that says something."""
    lines = [line.strip(" -\t") for line in str(text).splitlines() if line.strip(" -\t")]
    return lines[0].rstrip(".") if lines else type(text).__name__


def _innermost(text: str) -> str:
    """Return what the message says of the deepest key: the lines after it that are indented further."""
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


def _describe(expected: str, text: str) -> str:
    if expected.startswith(("dot import path", "subclass of")):
        return "a list of mappings" if "Subtypes: [list[" in text else "a mapping of its keys"
    if literal := re.fullmatch(r"typing\.Literal\[(.*)\]", expected):
        return literal[1].replace(", ", " or ")
    return _TYPES.get(expected, expected)
