"""Mean, spread and paired differences of the runs of a sweep, as plain values."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hjepa_pl.callbacks.selection import selection_metrics
from hjepa_pl.evaluation.probes import PROBES
from hjepa_pl.tools.sweep.plan import Plan, Run
from hjepa_pl.tools.sweep.runner import failure

_COSTS = ("images_per_second", "seconds")
_UNLABELED = "val/rankme"
"""The metric that ranks the cells if no probe has a validation metric."""


def report(plan: Plan, out: Path) -> dict[str, Any]:
    """Return the results of a sweep, as stored in `sweep.json`.

    A validation metric is one that checkpoints may be ranked by. The cells are ranked by the first one of a probe that
    there is, else by val/rankme, else not at all.

    Args:
        plan: The sweep.
        out: Its folder.
    """
    runs = plan.runs(out)
    found = {(run.cell.number, run.seed): _numbers(run.summary) for run in runs if run.finished}
    names = list(dict.fromkeys(name for numbers in found.values() for name in numbers if name not in _COSTS))
    modes = {name: mode for name, mode in selection_metrics(_sets(names), []).items() if name in names}
    validation = list(modes)
    ranked_by = next((name for name in validation if name.startswith("probe/") or name == _UNLABELED), None)
    cells: list[dict[str, Any]] = []
    for cell in plan.cells:
        mine = {seed: numbers for (number, seed), numbers in found.items() if number == cell.number}
        first = {seed: numbers for (number, seed), numbers in found.items() if number == 1}
        metrics = {
            name: summarize(_values(mine, name), None if cell.number == 1 else _values(first, name))
            for name in [*validation, *sorted({*names} - {*validation}, key=_place), *_COSTS]
            if _values(mine, name)
        }
        cells.append({"cell": cell.number, "label": cell.label, "values": cell.values, "metrics": metrics})
    if ranked_by is not None:
        cells.sort(key=lambda c: -c["metrics"][ranked_by]["mean"] if ranked_by in c["metrics"] else float("inf"))
    return {
        "sweep": plan._asdict(),
        "runs": [_record(run) for run in runs],
        "validation_metrics": validation,
        "lower_is_better": [name for name, mode in modes.items() if mode == "min"],
        "test_metrics": [name for name in names if _place(name)[0] < 2 and name not in validation],
        "ranked_by": ranked_by,
        "cells": cells,
    }


def summarize(values: Mapping[int, float], first: Mapping[int, float] | None) -> dict[str, Any]:
    """Return number, mean and standard deviation (n - 1) of one metric, and its difference to the first cell.

    Args:
        values: By seed, at least one.
        first: Those of the first cell; None for the first cell itself.

    Returns:
        Without `sd` for one seed. `difference`, if there are seeds that both have: their number, the mean of the
        differences at equal seeds and, for two seeds or more, its standard error.
    """
    numbers = list(values.values())
    summary: dict[str, Any] = {"seeds": len(numbers), "mean": statistics.fmean(numbers)}
    if len(numbers) > 1:
        summary["sd"] = statistics.stdev(numbers)
    pairs = [value - first[seed] for seed, value in values.items() if seed in first] if first else []
    if pairs:
        summary["difference"] = {"pairs": len(pairs), "mean": statistics.fmean(pairs)}
        if len(pairs) > 1:
            summary["difference"]["standard_error"] = statistics.stdev(pairs) / len(pairs) ** 0.5
    return summary


def _values(runs: Mapping[int, Mapping[str, float]], name: str) -> dict[int, float]:
    return {seed: numbers[name] for seed, numbers in runs.items() if name in numbers}


def _numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of probes and of `data.holdout`, speed and time of a run; only finite ones."""
    held_out = selection_metrics([], [])
    kept = {k: value for k, value in summary["metrics"].items() if k.startswith("probe/") or k in held_out}
    numbers = kept | {name: summary[name] for name in _COSTS}
    return {name: float(value) for name, value in numbers.items() if value is not None}


def _sets(names: Sequence[str]) -> list[str]:
    """Return the names of the probe sets: "digits" of "probe/digits/knn"."""
    probes = [name.removeprefix("probe/") for name in names if name.startswith("probe/")]
    return list(dict.fromkeys(name.rpartition("/")[0] for name in probes))


def _place(name: str) -> tuple[int, str]:
    """Return where a metric stands: accuracies on the test split, the same before training, others."""
    metric = name.rpartition("/")[2].removesuffix("_online").removesuffix("_top5")
    if metric in PROBES:
        return 0, name
    return (1 if metric.startswith(("untrained_", "pixels_")) else 2), name


def _record(run: Run) -> dict[str, Any]:
    summary = run.summary
    return {
        "cell": run.cell.number,
        "title": run.title,
        "seed": run.seed,
        "folder": run.folder.name,
        "status": summary["status"] if run.finished else failure(run) if run.log.exists() else "not started",
        "finished": run.finished,
        **{key: summary.get(key) for key in ("device", "git")},
    }
