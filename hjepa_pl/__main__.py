"""The `hjepa` command: a dispatcher that imports nothing heavy before the command is known."""

import os
import sys
import time
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec

from hjepa_pl.cli.guard import guarded
from hjepa_pl.cli.parent import end_with_sweep

_STARTED = time.monotonic()
"""Start of the process: a time budget includes the time of imports."""

_LIGHTNING = {
    "fit": "pretrain a model, or resume a run",
    "validate": "evaluate a checkpoint on the probe datasets",
    "test": "same as validate",
}
_HIDDEN = ("predict",)
"""Works, but writes indices of the training images instead of file names."""
_TOOLS = {
    "check": (
        "check.command",
        "validate a config and print its parameters, tokens, FLOPs and memory (hjepa check --help)",
    ),
    "bench": ("bench.command", "measure the speed and memory of a config on this machine (hjepa bench --help)"),
    "eval": (
        "evaluate.command",
        "judge an encoder on labeled datasets, beside its baselines, in one report (hjepa eval --help)",
    ),
    "sweep": ("sweep.command", "run a config over seeds and a small grid of keys; one table (hjepa sweep --help)"),
    "shards": ("make_shards", "write a folder of images as tar shards (hjepa shards --help)"),
}
"""Commands in addition to Lightning's: the module of `hjepa_pl.tools` with their function `run`, and a description."""
_ALIASES = {"train": "fit", "pretrain": "fit", "resume": "fit", "evaluate": "eval", "probe": "eval"}
"""Names that other programs have for a command."""

_HELP = """usage: hjepa COMMAND [CONFIG] [--config FILE.yaml] [--key value ...]

commands:
{commands}

examples:
  hjepa fit quickstart                                a config of the package, by name
  hjepa fit --config configs/quickstart.yaml          a config by path
  hjepa fit --ckpt_path results/quickstart            resume a run, with the config in its folder
  hjepa fit --help                                    every key with its type, default and meaning
  hjepa fit --help trainer                            keys that contain a word, here those of Lightning's Trainer
  hjepa fit --print_config                            a config with every key and its default
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    It is 0 for success, 1 if a run failed or had to stop, 2 for a wrong setting, 130 for Ctrl-C before a run.
    """
    return guarded(lambda: _dispatch(args))


def _dispatch(args: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if args is None else args)
    if args is None:
        end_with_sweep()
    if args is None and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for import paths of one's own parts, as `python -m` does
    command = argv[0] if argv else "help"
    if command in ("-h", "--help", "help") and len(argv) < 2:
        described = _LIGHTNING | {name: meaning for name, (_, meaning) in _TOOLS.items()}
        print(_HELP.format(commands="\n".join(f"  {name:<8}  {meaning}" for name, meaning in described.items())))
        return 0
    if command in ("-V", "--version", "version"):
        from importlib.metadata import version

        print(f"hjepa_pl {version('hjepa_pl')}")
        return 0
    if command == "help":
        argv = [*argv[1:2], "--help", *argv[2:]]
        command = argv[0]
    if command in _LIGHTNING or command in _HIDDEN:
        return _lightning(argv, _STARTED if args is None else time.monotonic(), of_process=args is None)
    if command in _TOOLS:
        from importlib import import_module

        return int(import_module(f"hjepa_pl.tools.{_TOOLS[command][0]}").run(argv[1:]))
    return _fail(_unknown(command, argv))


def _lightning(argv: list[str], began: float, *, of_process: bool) -> int:
    """Run one of Lightning's commands, after its words have been read."""
    from hjepa_pl.cli.arguments import help_topic, read_words
    from hjepa_pl.types import ConfigError

    topic = help_topic(argv[1:])
    if topic is not None:
        from hjepa_pl.cli.help import help_text

        print(help_text(argv[0], topic))
        return 0
    try:
        words = read_words(argv)
    except ConfigError as error:
        return _fail(str(error))
    from hjepa_pl.cli.main import run

    if of_process and sys.modules["__main__"].__spec__ is None:
        # Lightning starts the other processes of a run by this name, or else by a path that may not exist.
        sys.modules["__main__"].__spec__ = find_spec("hjepa_pl.__main__")
    return run(words, began)


def _unknown(command: str, argv: Sequence[str]) -> str:
    """Return the message for a command that does not exist."""
    known = [*_LIGHTNING, *_TOOLS]
    if command.startswith("-"):
        return f"the command is missing; write hjepa fit {' '.join(argv)}"
    from hjepa_pl.cli.config_files import shipped_configs

    if command in shipped_configs() or command.endswith((".yaml", ".yml")):
        return f"the command is missing; write hjepa fit {' '.join(argv)}"
    near = [_ALIASES[command]] if command in _ALIASES else get_close_matches(command, known, 1)
    hint = f"did you mean hjepa {near[0]}? T" if near else "t"
    return f"unknown command '{command}'; {hint}he commands are {', '.join(known)}."


def _fail(sentence: str) -> int:
    print(f"hjepa: error: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
