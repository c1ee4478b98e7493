"""`hjepa eval --compare`: evaluations side by side, with paired differences."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from hjepa_pl.evaluation.intervals import difference_interval
from hjepa_pl.tools.evaluate.comparable import Evaluation, check_comparable, read_evaluations
from hjepa_pl.tools.evaluate.evaluation import make_writable
from hjepa_pl.tools.evaluate.html.comparison import COMPARISON_PAGE, write_comparison_html
from hjepa_pl.tools.evaluate.html.elements.numbers import difference_text, heading, is_clear
from hjepa_pl.tools.evaluate.report import result_table
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.atomic_file import atomic_write

SCHEMA = 1
"""Version of the layout of compare.json."""
COMPARISON = "compare.json"


def run_compare(args: Sequence[str]) -> int:
    """Compare the evaluations that a command line names; return the exit status."""
    try:
        paths, out = read_words(args)
        compare(paths, out)
    except ConfigError as error:
        print(f"hjepa eval: error: {error}", file=sys.stderr)
        return 2
    return 0


def read_words(args: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the folders after --compare, and that of --out.

    Raises:
        ConfigError: If there is another key.
    """
    paths: list[str] = []
    out: list[str] = []
    into = paths
    for word in args:
        name, given, value = word.partition("=")
        if not word.startswith("--"):
            into.append(word)
            continue
        if name not in ("--compare", "--out"):
            raise ConfigError(f"{name} has no effect with --compare, which reads what was written; remove it.")
        into = paths if name == "--compare" else out
        into += [value] if given else []
    if len(out) > 1 or (not out and any(word.partition("=")[0] == "--out" for word in args)):
        raise ConfigError("--out needs one folder; name those to compare after --compare.")
    return paths, Path(out[0]).expanduser() if out else None


def compare(paths: Sequence[str], out: Path | None = None) -> dict[str, Any]:
    """Set evaluations side by side: print tables and, with `out`, write compare.json and compare.html.

    Args:
        paths: Folders of evaluations; the others are compared with the first one.
        out: Folder to write to.

    Returns:
        The content of compare.json.

    Raises:
        ConfigError: If they are not comparable, or a file is missing or damaged.
    """
    found = read_evaluations(paths)
    shared = check_comparable(found)
    if out is not None:
        make_writable("eval.out", out)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "protocol": found[0].report["protocol"],
        "evaluations": [_origin(evaluation) for evaluation in found],
        "sets": {name: merge(found, name) for name in shared},
        "notes": _notes(found, shared),
    }
    result["sentences"] = _sentences(result["sets"], found[0].name)
    _print(result, found[0].name)
    if out is not None:
        with atomic_write(out / COMPARISON) as file:
            json.dump(result, file, indent=1)
        write_comparison_html(result, found, out)
        Console().print(f"Comparison: {out / COMPARISON} and {COMPARISON_PAGE}", highlight=False, markup=False)
    return result


def merge(found: Sequence[Evaluation], name: str) -> dict[str, Any]:
    """Return a dataset's entry in compare.json: as in report.json, the evaluations as networks, the first as ours.

    `tasks` has the metrics of the tasks that all evaluations did, by task and evaluation; then those of the baselines,
    once where they are the same. `differences` is, by task and evaluation, the accuracy of the first less that of the
    other, with the 95 % interval of the paired bootstrap.
    """
    first = found[0]
    entry = first.report["sets"][name]
    tasks = [t for t in entry["tasks"] if all(t in e.report["sets"][name]["tasks"] for e in found)]
    if not tasks:
        raise ConfigError(f"the evaluations share no task on {name}; evaluate them with the same --tasks.")
    differences: dict[str, Any] = {}
    for task in tasks:
        ours = first.correct(name, task, first.subject)
        for other in found[1:]:
            theirs = other.correct(name, task, other.subject)
            if ours is not None and theirs is not None:
                value = 100.0 * float(ours.double().mean() - theirs.double().mean())
                interval = difference_interval(ours, theirs, first.report["seed"])
                differences.setdefault(task, {})[other.name] = {"value": value, "interval": interval}
    return {
        "classes": entry["classes"],
        "train": entry["train"],
        "test": entry["test"],
        "hash": entry["hash"],
        "tasks": {task: _values(found, name, task) for task in tasks},
        "differences": differences,
    }


def verdict(first: str, other: str, difference: dict[str, Any]) -> str:
    """Return a difference in words, as `A beats B by 1.2 ± 0.5 points`."""
    text = difference_text(difference)
    if not is_clear(difference):
        return f"no clear difference between {first} and {other} ({text} points)."
    winner, loser = (first, other) if difference["value"] > 0 else (other, first)
    return f"{winner} beats {loser} by {text[1:]} points."


def _sentences(sets: dict[str, Any], first: str) -> list[str]:
    """Return all differences in words."""
    return [
        f"{name}, {heading(task)}: {verdict(first, other, difference)}"
        for name, entry in sets.items()
        for task, others in entry["differences"].items()
        for other, difference in others.items()
    ]


def _values(found: Sequence[Evaluation], name: str, task: str) -> dict[str, Any]:
    """Return a task's metrics by evaluation, then by baseline."""
    by_network = {e.name: e.report["sets"][name]["tasks"][task] for e in found}
    values = {e.name: by_network[e.name][e.subject] for e in found}
    for baseline in dict.fromkeys(label for e in found for label in by_network[e.name] if label != e.subject):
        owners = [e.name for e in found if baseline in by_network[e.name] and baseline != e.subject]
        metrics = [by_network[owner][baseline] for owner in owners]
        if baseline not in values and all(_timeless(m) == _timeless(metrics[0]) for m in metrics):
            values[baseline] = metrics[0]
        else:
            values |= {f"{baseline} ({owner})": m for owner, m in zip(owners, metrics, strict=True)}
    return values


def _timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key != "seconds"}


def _origin(evaluation: Evaluation) -> dict[str, Any]:
    kept = ("model", "precision", "device", "seed", "created", "commit")
    return {
        "name": evaluation.name, "folder": str(evaluation.folder), **{k: evaluation.report.get(k) for k in kept}
    }  # fmt: skip


def _notes(found: Sequence[Evaluation], shared: Sequence[str]) -> list[str]:
    """Return what differs but does not forbid to compare."""
    notes = []
    for key, word in (("precision", "precision"), ("seed", "seed of the draws")):
        values = [str(e.report[key]) for e in found]
        if len(set(values)) > 1:
            pairs = ", ".join(f"{e.name} {value}" for e, value in zip(found, values, strict=True))
            notes.append(f"The {word} differs: {pairs}.")
    settings = [e.report.get("finetune") for e in found]
    if None not in settings and any(s != settings[0] for s in settings):
        notes.append("The settings of fine-tuning differ: see `finetune` in report.json.")
    for evaluation in found:
        if left := [name for name in evaluation.report["sets"] if name not in shared]:
            notes.append(f"Only {evaluation.name} or some of the others were judged on {', '.join(left)}.")
    return notes


def _print(result: dict[str, Any], first: str) -> None:
    console = Console()
    for name, entry in result["sets"].items():
        console.print(result_table(name, entry, first))
    ending = "± is the 95 % interval over test images, of differences by the paired bootstrap."
    for line in [*result["sentences"], *result["notes"], f"Protocol {result['protocol']['name']}; {ending}"]:
        console.print(line, highlight=False, markup=False)
