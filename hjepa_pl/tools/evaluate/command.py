"""`hjepa eval`: judge an encoder on labeled datasets, beside its baselines."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hjepa_pl.types import ConfigError

_HELP = """usage: hjepa eval --ckpt PATH [--sets SETS] [--suite quick|full] [--out DIR] [--key value ...]
       hjepa eval --timm NAME [--weights FILE] --sets SETS [--key value ...]

Judges frozen features on labeled datasets, beside raw pixels and the untrained encoder. Writes report.json and
predictions.npz. Features are computed once and kept, so that the same command goes on after a kill.

{keys}

examples:
  hjepa eval --ckpt results/quickstart                   on the datasets that the run was probed on
  hjepa eval --ckpt last.ckpt --sets '[{{name: folder, root: photos}}]' --suite full
  hjepa eval --timm vit_small_patch16_224 --sets '[{{name: cifar10}}]' --tasks knn,linear
  hjepa eval --config eval.yaml                          the same keys in a file

Exit status: 0, 1 for an unexpected error, 2 if a key or file is invalid, 130 for Ctrl-C."""

_LISTS = ("tasks", "features")
"""Keys that also take words separated by commas."""


def run(args: Sequence[str]) -> int:
    """Evaluate, and print the tables; return the exit status."""
    if any(word in ("-h", "--help") for word in args):
        print(_HELP.format(keys=_keys_help()))
        return 0
    try:
        given = read_arguments(args)
        from hjepa_pl.tools.arguments import sentence  # not at the top: --help does not import Lightning
        from hjepa_pl.tools.evaluate.config import EvalConfig
        from hjepa_pl.utils.settings import from_plain

        config = from_plain(EvalConfig, given, "eval")
    except ConfigError as error:
        return _fail(str(error))
    from hjepa_pl.tools.evaluate.evaluation import evaluate

    try:
        evaluate(config)
    except Exception as error:
        return _fail(sentence(error))
    return 0


def _fail(message: str) -> int:
    print(f"hjepa eval: error: {message}", file=sys.stderr)
    return 2


def read_arguments(args: Sequence[str]) -> dict[str, Any]:
    """Return the keys of a command line and of the file that --config names; the command line wins.

    Raises:
        ConfigError: If a word is not a key, lacks its value, or the file is not a mapping.
    """
    given: dict[str, Any] = {}
    words = list(args)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            raise ConfigError(f"'{word}' is not a key; for a checkpoint write --ckpt {word}.")
        if not equals:
            if not words or words[0].startswith("--"):
                raise ConfigError(f"{name} needs a value.")
            value = words.pop(0)
        key = name.removeprefix("--")
        if key in given:
            raise ConfigError(f"{name} is given twice; remove one.")
        given[key] = _parse(key, value)
    if path := given.pop("config", None):
        given = _read_file(str(path)) | given
    _check_known(given)
    return given


def _parse(key: str, text: str) -> Any:
    """Return the value of a key of the command line."""
    if key in _LISTS and not text.startswith("["):
        return [word.strip() for word in text.split(",") if word.strip()]
    if key not in ("sets", "finetune", *_LISTS, "seed", "batch_size"):
        return None if text == "null" else text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"invalid `--{key}={text}`: is not valid YAML; write --sets '[{{name: cifar10}}]'.") from None


def _read_file(path: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: {getattr(error, 'strerror', None) or 'not a text file'}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"--config {path} must hold keys of hjepa eval, such as `ckpt: results/quickstart`.")
    for key in _LISTS:
        if isinstance(tree.get(key), str):
            tree[key] = _parse(key, tree[key])
    return tree


def _check_known(given: dict[str, Any]) -> None:
    import difflib

    from hjepa_pl.data.config import as_list
    from hjepa_pl.tools.evaluate.config import EvalConfig, EvalSet, FinetuneRun
    from hjepa_pl.utils.settings import from_plain, from_plain_list

    known = [field.name for field in dataclasses.fields(EvalConfig)]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean --{near[0]}?" if near else f"the keys are {', '.join(known)}."
            raise ConfigError(f"--{key} is not a key of hjepa eval; {hint}")
    if given.get("sets") is not None:
        given["sets"] = list(from_plain_list(EvalSet, as_list(given["sets"]), "sets"))
    if given.get("finetune") is not None:
        given["finetune"] = from_plain(FinetuneRun, given["finetune"], "finetune")


def _keys_help() -> str:
    """Return the keys with their meaning."""
    import textwrap

    from hjepa_pl.tools.evaluate.config import EvalConfig

    lines = []
    for field in dataclasses.fields(EvalConfig):
        meaning = EvalConfig.__pydantic_fields__[field.name].description or ""  # type: ignore[attr-defined]
        text = textwrap.fill(
            " ".join(meaning.replace("`", "").split()), 120, initial_indent=" " * 15, subsequent_indent=" " * 15
        )
        lines.append(f"  --{field.name:<11}" + text[15:])
    return "\n".join(lines)
