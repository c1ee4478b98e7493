"""`hjepa monitor`: watch running or finished runs in the terminal."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hjepa_pl.types import ConfigError

_HELP = """usage: hjepa monitor [RUN ...] [--once]

Shows runs while they train, or after: progress and time left, loss terms, learning rate, images/s, memory, probe
accuracies beside those of the untrained encoder and of raw pixels, held-out metrics, rank per level, warnings and the
last lines of the log. A RUN is a folder, or its name in results/; without one, the newest run in results/. Several runs
stand side by side where each has 60 columns. Reads files only: the runs do not notice, and torch is not imported.

  --once   print the present state and exit, as always if the output is no terminal

q or Ctrl-C ends it.
Exit status: 0, or 2 if a folder holds no run."""
_RESULTS = Path("results")


def run(args: Sequence[str]) -> int:
    """Show runs until q is pressed; return the exit status."""
    if any(word in ("-h", "--help") for word in args):
        print(_HELP)
        return 0
    try:
        names = [word for word in args if word != "--once"]
        unknown = next((name for name in names if name.startswith("-")), None)
        if unknown is not None:
            raise ConfigError(f"unknown key {unknown}; the only one is --once.")
        folders = [_find(name) for name in dict.fromkeys(names)] or [_newest(_RESULTS)]
    except ConfigError as error:
        print(f"hjepa monitor: error: {error}", file=sys.stderr)
        return 2
    from hjepa_pl.tools.monitor.run_files import RunFiles
    from hjepa_pl.tools.monitor.screen import print_once, watch

    runs = [RunFiles(folder) for folder in folders]
    if "--once" in args or not sys.stdout.isatty():
        print_once(runs, shutil.get_terminal_size().columns)
    else:
        watch(runs)
    return 0


def _find(name: str) -> Path:
    """Return the folder of a run, given by path or by its name in results/.

    Raises:
        ConfigError: If there is none, or it holds no run.
    """
    given = Path(name)
    folder = next((p for p in (given, _RESULTS / name) if p.is_dir()), None)
    if folder is None:
        what = "is a file; give the folder of the run" if given.is_file() else "there is no such folder"
        near = sorted(p.name for p in _runs_in(_RESULTS))[:5]
        raise ConfigError(f"{name}: {what}{f'; runs in results/ are {_listed(near)}' if near else ''}.")
    if not _is_run(folder):
        within = sorted(p.name for p in _runs_in(folder))
        if within:
            raise ConfigError(f"{name} holds several runs; name some of them, such as {folder / within[0]}.")
        raise ConfigError(f"{name} holds no run (no config.yaml, metrics.csv or logs/train.log).")
    return folder


def _newest(results: Path) -> Path:
    """Return the run that was written to last."""
    runs = _runs_in(results)
    if not runs:
        raise ConfigError("there is no run in results/ here; name the folder of one: hjepa monitor FOLDER.")
    return max(runs, key=_last_written)


def _runs_in(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and _is_run(p)] if folder.is_dir() else []


_FILES = ("config.yaml", "metrics.csv", "logs/train.log")
"""A folder with one of them is that of a run."""


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _FILES)


def _last_written(folder: Path) -> float:
    return max((folder / name).stat().st_mtime for name in _FILES if (folder / name).is_file())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
