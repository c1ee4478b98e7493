"""report.json and predictions.npz of an evaluation, and its table."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from hjepa_pl.evaluation.tasks import heading
from hjepa_pl.tools.evaluate.suite import JudgedSet
from hjepa_pl.utils.atomic_file import atomic_write

SCHEMA = 1
"""Version of the layout of report.json, described in docs/evaluation.md."""
REPORT, PREDICTIONS = "report.json", "predictions.npz"


def write_report(report: dict[str, Any], judged: Sequence[JudgedSet], out: Path) -> None:
    """Write report.json, and predictions.npz with the labels and predictions of the test images.

    Args:
        report: The content of report.json.
        judged: What was found on each dataset.
        out: The folder; it is made if it does not exist.
    """
    arrays: dict[str, Any] = {}
    for found in judged:
        arrays[f"{found.data.name}/labels"] = found.data.test_y.numpy().astype(np.int32)
        for (task, network), (label, confidence) in found.predictions.items():
            arrays[f"{found.data.name}/{task}/{network}/label"] = label.numpy().astype(np.int32)
            arrays[f"{found.data.name}/{task}/{network}/confidence"] = confidence.numpy().astype(np.float32)
    with atomic_write(out / PREDICTIONS, "wb") as file:
        np.savez_compressed(file, **arrays)
    with atomic_write(out / REPORT) as file:
        json.dump(_finite(report), file, indent=1)


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not have by null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def result_table(name: str, result: dict[str, Any], subject: str) -> Table:
    """Return the table of a dataset: the networks in rows, the tasks in columns, then the differences.

    Args:
        name: The dataset.
        result: Its entry in report.json.
        subject: Label of the network that is judged.
    """
    title = f"{name}: {result['train']:,} training and {result['test']:,} test images, {len(result['classes'])} classes"
    table = Table(title=title, title_justify="left")
    table.add_column("features", no_wrap=True)
    tasks = list(result["tasks"])
    for task in tasks:
        table.add_column(heading(task), justify="right", no_wrap=True)
    labels = list(next(iter(result["tasks"].values())))
    for label in [*labels[1:], subject]:
        cells = [_cell(result["tasks"][task].get(label, {})) for task in tasks]
        table.add_row(label, *cells, style="bold" if label == subject else None, end_section=label == subject)
    for label in labels[1:] if result["differences"] else []:
        cells = [_difference(result["differences"].get(task, {}).get(label)) for task in tasks]
        table.add_row(f"above {label}", *cells)
    return table


def kinds_table(result: dict[str, Any]) -> Table:
    """Return the table of the further kinds of features: kinds in rows, tasks in columns."""
    table = Table(title="Other features of the same network", title_justify="left")
    table.add_column("features", no_wrap=True)
    tasks = list(next(iter(result["features"].values())))
    for task in tasks:
        table.add_column(heading(task), justify="right", no_wrap=True)
    for kind, found in result["features"].items():
        table.add_row(kind, *(_cell(found[task]) for task in tasks))
    return table


def _cell(metrics: dict[str, Any]) -> str:
    if not metrics:
        return "-"
    headline = next(iter(metrics.values()))
    if "interval" in metrics:
        low, high = metrics["interval"]
        return f"{headline:.1f} ± {(high - low) / 2:.1f}"
    first = next(iter(metrics))
    if f"{first}_interval" in metrics:
        return f"{headline:.1f} ± {metrics[f'{first}_interval']:.1f}"
    return f"{headline:.1f}"


def _difference(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["interval"]
    return f"{found['value']:+.1f} ± {(high - low) / 2:.1f}"
