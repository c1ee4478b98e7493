"""`hjepa sweep`: one config over seeds and a small grid of keys, each run a subprocess, and one table."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hjepa_pl.cli.guard import INTERRUPTED
from hjepa_pl.types import ConfigError

_HELP = """usage: hjepa sweep CONFIG [--config LAYER] [--seeds N] [--grid KEY=VALUE,VALUE ...] [--key value ...]
       hjepa sweep --table OUT

Runs `hjepa fit` with the seeds 0 to N-1 for every combination of the grid's values (a cell), each in a process and a
folder of its own. All cells are checked before the first run. At the end one table is printed and written to
OUT/sweep.md and OUT/sweep.json: mean and standard deviation over the seeds of the probes' metrics, images/s, seconds,
and the difference to the first cell at equal seeds. Cells are ranked by validation metrics, never by test metrics.
The same command again goes on: finished runs are kept, one that was cut off is resumed exactly, a failed one is tried
again, and with a larger N seeds are added. Keys are those of fit.

  --seeds N      number of seeds (default 3)
  --grid K=A,B   values of a key; commas inside brackets or quotes do not separate values. Several --grid make a product
  --out OUT      folder of the sweep (default: results/<experiment_name>-sweep)
  --jobs N       runs at once (default 1), all on the same device; on a CPU set OMP_NUM_THREADS to its cores / N
  --table OUT    print and write the table of what has finished so far, and run nothing

example:
  hjepa sweep cifar10 --seeds 3 --grid model.optimizer.lr=1e-3,2e-3 --grid 'model.levels=[{cell: image}],three'

Ctrl-C ends the running processes as it does in fit. With --logging.wandb=true the runs are a group of the name of OUT.
Exit status: 0, 1 if a run failed, 2 if a key is invalid, 130 for Ctrl-C."""

OWN = {"--seeds": True, "--grid": True, "--out": True, "--jobs": True, "--table": True}
"""The keys of the sweep itself; all take a value."""


class _Request(NamedTuple):
    """A command line."""

    words: list[str]
    """The arguments of fit, configs by path."""
    grid: dict[str, list[str]]
    seeds: int
    out: str | None
    jobs: int


def run(args: Sequence[str]) -> int:
    """Run a sweep, or print its table; return the exit status."""
    if any(word in ("-h", "--help") for word in args):
        print(_HELP)
        return 0
    try:
        grids, rest = take_grids(args)
        _check_once(rest)
        from hjepa_pl.tools.arguments import (
            check_one_config,
            sort_words,
        )  # not at the top: --help does not import Lightning

        words = sort_words(rest, OWN)
        if "--table" in words.own:
            if grids or words.paths or words.fit or len(words.own) > 1:
                raise ConfigError("--table takes the folder of a sweep alone; remove the other words.")
            return _table(Path(words.own["--table"]))
        check_one_config("sweep", words.paths)
        return _sweep(_request(grids, words.own, [*(f"--config={path}" for path in words.paths), *words.fit]), args)
    except ConfigError as error:
        print(f"hjepa sweep: error: {error}", file=sys.stderr)
        return 2


def take_grids(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what follows each --grid, and the other words."""
    grids: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        name, equals, text = word.partition("=")
        if name != "--grid":
            rest.append(word)
        elif equals:
            grids.append(text)
        elif (following := next(words, None)) is not None:
            grids.append(following)
        else:
            raise ConfigError("--grid needs KEY=VALUE,VALUE.")
    return grids, rest


def _check_once(words: Sequence[str]) -> None:
    """Reject an own key that is given twice: the last would silently count."""
    names = [word.partition("=")[0] for word in words]
    for name in OWN:
        if names.count(name) > 1:
            raise ConfigError(f"{name} is given twice; remove one.")


def _request(grids: Sequence[str], own: dict[str, str], fit: Sequence[str]) -> _Request:
    from hjepa_pl.cli.arguments import read_words
    from hjepa_pl.tools.sweep.grid import read_grid

    counts = {}
    for name, default in (("--seeds", "3"), ("--jobs", "1")):
        text = own.get(name, default)
        if not (text.isascii() and text.isdecimal()) or int(text) < 1:
            raise ConfigError(f"invalid `{name}={text}`: must be a whole number >= 1.")
        counts[name] = int(text)
    if own.get("--out") == "":
        raise ConfigError("invalid `--out=`: must be the path of a folder.")
    named = {word.partition("=")[0] for word in fit}
    if not {"--config", "-c"} & named:
        raise ConfigError("a config is missing; for example hjepa sweep quickstart --seeds 3.")
    words = read_words(["fit", *fit])[1:]
    return _Request(words, read_grid(grids, words), counts["--seeds"], own.get("--out"), counts["--jobs"])


def _sweep(request: _Request, args: Sequence[str]) -> int:
    """Check all cells, run what is not finished, and print the table."""
    from hjepa_pl.tools.sweep.dry_cells import check_cells
    from hjepa_pl.tools.sweep.grid import cells_of
    from hjepa_pl.tools.sweep.plan import check_same, load_plan, make_plan
    from hjepa_pl.tools.sweep.runner import Runner, locked
    from hjepa_pl.tools.sweep.table import store_plan

    cells = cells_of(request.grid)
    checked = check_cells(request.words, cells)
    out = checked.out if request.out is None else Path(request.out)
    plan = make_plan(request.words, request.grid, request.seeds)
    check_same(out, plan)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out) as lock:
        earlier = load_plan(out)
        stored = plan if earlier is None else plan._replace(seeds=max(plan.seeds, earlier.seeds))
        if stored != earlier:
            store_plan(stored, out)
        runs = plan.runs(out)
        left = [run for run in runs if not run.finished]
        budgets = [checked.budgets[run.cell.number - 1] for run in left]
        hours = "" if None in budgets or not left else f", at most {_hours(budgets, request.jobs)} in all"
        print(
            f"{len(runs)} run{'s' * (len(runs) > 1)} ({plan.size}) in {out}; {len(left)} to do{hours}.",
            flush=True,
        )
        try:
            Runner(out, request.words, request.jobs, lock).run_all(left)
        except KeyboardInterrupt:
            ended = sum(run.finished for run in runs)
            print(
                f"hjepa sweep: interrupted; {ended} of {len(runs)} runs are finished. To go on: hjepa sweep "
                f"{shlex.join(args)}\nThe table so far: hjepa sweep --table {shlex.quote(str(out))}",
                file=sys.stderr,
            )
            return INTERRUPTED
        _table(out)
    return 0 if all(run.finished for run in runs) else 1


def _hours(budgets: Sequence[float | None], jobs: int) -> str:
    seconds = sum(budget or 0.0 for budget in budgets)
    return f"{seconds / 3600:.2f} h of time budgets" + (f" ({jobs} at once)" if jobs > 1 else "")


def _table(out: Path) -> int:
    """Print and write the table of a sweep."""
    from hjepa_pl.tools.sweep.plan import load_plan
    from hjepa_pl.tools.sweep.statistics import report
    from hjepa_pl.tools.sweep.table import write_table

    plan = load_plan(out)
    if plan is None:
        raise ConfigError(f"{out} is not the folder of a sweep: it has no sweep.json.")
    print(write_table(report(plan, out), out), flush=True)
    return 0
