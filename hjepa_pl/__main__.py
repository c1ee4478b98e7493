"""The `hjepa` command: a dispatcher that imports nothing heavy until it knows what is asked for."""

import sys
import time
from collections.abc import Sequence

from hjepa_pl.failures import guarded

_STARTED = time.monotonic()
"""When the process began, or nearly: a time budget counts the seconds that imports take."""

_LIGHTNING = {
    "fit": "pretrain a model",
    "validate": "judge a checkpoint on the probe sets",
    "test": "the same, under Lightning's name for it",
    "predict": "write a checkpoint's features of the training sets",
}
_TOOLS = {
    "check": "say what a config amounts to, or why it is refused (hjepa check --help)",
    "bench": "measure what a config's steps and run take on this machine (hjepa bench --help)",
    "shards": "make tar shards from a folder of images (hjepa shards --help)",
}
"""Commands beside Lightning's own: each is a module of `hjepa_pl.tools` with a function `run`."""

_HELP = """usage: hjepa COMMAND [--config FILE.yaml] [--key=value ...]

commands:
{commands}

examples:
  hjepa fit --config configs/quickstart.yaml
  hjepa fit --config configs/quickstart.yaml --ckpt_path last     resume
  hjepa fit --print_config                                        every key with its default
  hjepa fit --help                                                every key with its meaning
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    It is 0, 1 for a run that had to stop or failed, 2 for a refused setting, 130 for Ctrl-C before a run.
    """
    return guarded(lambda: _dispatch(args))


def _dispatch(args: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if args is None else args)
    if not argv or argv[0] in ("-h", "--help"):
        commands = _LIGHTNING | _TOOLS
        width = max(map(len, commands))
        print(_HELP.format(commands="\n".join(f"  {k:<{width}}  {v}" for k, v in commands.items())))
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"hjepa_pl {version('hjepa_pl')}")
        return 0
    if argv[0] in _LIGHTNING:
        from hjepa_pl.launch import run

        return run(argv, _STARTED if args is None else time.monotonic())
    if argv[0] in _TOOLS:
        from importlib import import_module

        return int(import_module(f"hjepa_pl.tools.{argv[0]}").run(argv[1:]))
    known = ", ".join(_LIGHTNING | _TOOLS)
    print(f"hjepa: error: unknown command '{argv[0]}'; the commands are {known}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
