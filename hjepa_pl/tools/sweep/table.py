"""The table of a sweep as Markdown, for the terminal and for `sweep.md`."""

import json
from pathlib import Path
from typing import Any

from hjepa_pl.tools.sweep.plan import STORE, Plan
from hjepa_pl.utils.atomic_file import atomic_write

_HEAD = ("metric", "split", "cell", "seeds", "mean", "sd", "minus cell 1")


def store_plan(plan: Plan, out: Path) -> None:
    """Write `sweep.json` with the plan alone, before the first run."""
    _store(out, {"sweep": plan._asdict()})


def write_table(found: dict[str, Any], out: Path) -> str:
    """Write `sweep.json` and `sweep.md`, and return the text of the latter."""
    text = "\n".join(markdown(found, out.resolve().name)) + "\n"
    _store(out, found)
    with atomic_write(out / "sweep.md") as file:
        file.write(text)
    return text


def _store(out: Path, content: dict[str, Any]) -> None:
    with atomic_write(out / STORE) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False) + "\n")


def markdown(found: dict[str, Any], name: str) -> list[str]:
    """Return the lines of the table, with what it was ranked by and the runs that did not complete.

    Args:
        found: Of `report`.
        name: Title.
    """
    runs, plan = found["runs"], found["sweep"]
    ended = sum(run["finished"] for run in runs)
    lines = [f"# {name}", "", f"{ended} of {len(runs)} runs finished: {Plan(**plan).size}."]
    lines += [f"Keys: {' '.join(plan['keys'])}"] if plan["keys"] else []
    if ended:
        lines += ["", *_aligned([list(_HEAD), *_rows(found)]), "", *_remarks(found)]
    for run in runs:
        if run["status"] != "completed":
            included = " (included in the means)" if run["finished"] else ""
            lines.append(f"- cell {run['cell']} ({run['title']}): {run['status']}{included}")
    return lines


def _rows(found: dict[str, Any]) -> list[list[str]]:
    """Return a row for each metric and cell; the best cell comes first in each group."""
    names = list(dict.fromkeys(name for cell in found["cells"] for name in cell["metrics"]))
    names.sort(key=lambda name: name in ("images_per_second", "seconds"))  # a cell may lack metrics of another
    rows = []
    for name in names:
        split = "validation" if name in found["validation_metrics"] else "test" * (name in found["test_metrics"])
        shown = name.removeprefix("probe/") + " (lower is better)" * (name in found["lower_is_better"])
        for cell in found["cells"]:
            if (metric := cell["metrics"].get(name)) is not None:
                numbers = [f"{metric['seeds']}", _number(metric["mean"]), _number(metric.get("sd"))]
                label = f"{cell['cell']}: {cell['label']}"
                rows.append([shown, split, label, *numbers, _difference(metric)])
    return rows


def _difference(metric: dict[str, Any]) -> str:
    found = metric.get("difference")
    if found is None:
        return "-"
    error = f" +- {_number(found['standard_error'])}" if "standard_error" in found else ""
    fewer = f" ({found['pairs']} seeds)" if 1 < found["pairs"] < metric["seeds"] else ""
    return f"{'+' if found['mean'] >= 0 else ''}{_number(found['mean'])}{error}{fewer}"


def _number(value: float | None) -> str:
    """Return a number with two decimals, or with three digits if it is small."""
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


def _aligned(rows: list[list[str]]) -> list[str]:
    """Return a Markdown table whose columns are as wide as their longest cell; numbers are right-aligned."""
    cells = [[text.replace("|", "\\|") for text in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEAD))]
    rule = [f"{'-' * (w - 1)}{':' if i > 2 else '-'}" for i, w in enumerate(widths)]
    shown = []
    for line in (cells[0], rule, *cells[1:]):
        padded = [t.ljust(w) if i < 3 else t.rjust(w) for i, (t, w) in enumerate(zip(line, widths, strict=True))]
        shown.append(f"| {' | '.join(padded)} |")
    return shown


def _remarks(found: dict[str, Any]) -> list[str]:
    spread = (
        "sd: standard deviation over the seeds. minus cell 1: mean of the differences to cell 1 at equal seeds +- its "
        "standard error."
    )
    if found["sweep"]["seeds"] == 1:
        spread += " With one seed no error is claimed."
    where = ["; ".join(dict.fromkeys(str(run[key]) for run in found["runs"] if run[key])) for key in ("device", "git")]
    return [_ranking(found), spread, f"Device: {where[0]}. Commit: {where[1] or 'unknown'}."]


def _ranking(found: dict[str, Any]) -> str:
    """Return what the cells are ranked by, in words."""
    by = found["ranked_by"]
    if by is None:
        return (
            "The runs have no validation metric to rank by, so the cells are not ranked; add a set to data.probe "
            "(with labels), or set data.holdout (without)."
        )
    test = " Metrics of the test split are shown; no cell is ranked by them." if found["test_metrics"] else ""
    how = (
        "on validation images held out of the training split."
        if by.startswith("probe/")
        else "which is measured without labels, on held-out images: comparable only between equal encoders and data."
    )
    return f"Cells are ranked by the mean of {by.removeprefix('probe/')}, {how}{test}"
