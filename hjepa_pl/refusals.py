"""One sentence out of what the parser, Lightning or the system say of a setting they refuse."""

import argparse
import errno
import re

from hjepa_pl.types import ConfigError

_LOOK = "'hjepa fit --print_config' lists the keys"
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
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, argparse.ArgumentError):
        return parser_sentence(str(error))
    return None


def parser_sentence(text: str) -> str:
    """Return the sentence in jsonargparse's nested message: which key, what it was given, what it takes."""
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        return f"{found[1].split('=')[0]} is not a key; {_LOOK}."
    if found := re.search(r"does not accept (?:option|nested key) '([^']+)'", text):
        return f"'{found[1]}' is not a key; {_LOOK}."
    if found := re.search(r"Problems parsing config: (.*)", text, re.DOTALL):
        return f"the config is not valid YAML: {' '.join(found[1].split())}."
    path = ".".join(re.findall(r'Parser key "([^"]+)"', text))
    if found := re.search(r"Option '([^']+)' is not accepted", text):
        return f"{path} does not accept '{found[1]}'; {_LOOK}."
    if found := re.search(r"the following arguments are required: (\w+)", text):
        return f"{path} lacks the key '{found[1]}'; {_LOOK}."
    if found := re.search(r"File does not exist: '([^']+)'", text):
        return f"{path}: there is no file {found[1]}."
    if path.endswith("trainer.logger"):
        return "trainer.logger takes true, false or {class_path: ...}; for Weights & Biases set logging.wandb to true."
    innermost = _innermost(text)
    found_kinds = re.findall(r"(?:Expected an? |Not a valid )(.+?)(?:\. Got value: .*)?$", innermost, re.MULTILINE)
    expected = [_describe(e, innermost) for e in found_kinds if not e.startswith("path but")]
    given = re.search(r"(?:Given value|Got value): (.*)$", innermost, re.MULTILINE)
    if path and expected:
        kinds = " or ".join(dict.fromkeys(expected))
        return f"{path} must be {kinds}{f', got {given[1]!r}' if given else ''}."
    return first_line(innermost if path else text).rstrip(".") + "."


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
