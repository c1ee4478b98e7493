"""The first section: each dataset in a sentence and a small bar chart."""

from typing import Any

from hjepa_pl.evaluation.tasks import unit_of
from hjepa_pl.tools.evaluate.html.elements.markup import Markup, join, tag
from hjepa_pl.tools.evaluate.html.elements.numbers import (
    difference_text,
    half_width,
    heading,
    is_clear,
    metric_names,
    metric_text,
    number,
)
from hjepa_pl.tools.evaluate.html.elements.parts import Bar, bars, note

_BY = {"linear": "by a linear probe", "knn": "by k-NN", "finetune": "after fine-tuning"}
_FIRST = ("linear", "knn")
"""Tasks that stand for a dataset, the first of those that were done."""


def summary(report: dict[str, Any]) -> Markup:
    """Return the summary of report.json: a line for each dataset."""
    ours = report["model"]["label"]
    lines = [_line(f"set-{i}", name, found, ours) for i, (name, found) in enumerate(report["sets"].items())]
    remark = "± and the whiskers are 95 % intervals over the test images (of few labels: over draws of the labels)."
    return tag("section", *lines, note(remark), id="summary")


def headline_task(result: dict[str, Any]) -> str:
    """Return the task that stands for a dataset."""
    return next((task for task in _FIRST if task in result["tasks"]), next(iter(result["tasks"])))


def headline_bars(task: str, by_network: dict[str, Any], ours: str) -> Markup:
    """Return a task's headline of each network as bars."""
    name = metric_names(by_network[ours])[0]
    values = {label: number(name, metrics) or 0.0 for label, metrics in by_network.items()}
    high = 100.0 if unit_of(task) == "%" else max(*values.values(), 1e-9)
    rows = [
        Bar(label, values[label], metric_text(name, metrics), half_width(name, metrics), label == ours)
        for label, metrics in by_network.items()
    ]
    return bars(rows, high)


def sentence(result: dict[str, Any], task: str, ours: str) -> Markup:
    """Return what was found on a dataset by a task, in a sentence."""
    by_network = result["tasks"][task]
    name = metric_names(by_network[ours])[0]
    text, unit = metric_text(name, by_network[ours]), unit_of(task)
    beginning = join(tag("b", f"{text} {unit}".strip()), f" {_BY.get(task, f'by {heading(task)}')}")
    differences = result["differences"].get(task, {})
    if not differences:
        others = [f"{label} {metric_text(name, m)}" for label, m in by_network.items() if label != ours]
        return join(beginning, f" ({', '.join(others)})." if others else ".")
    clear = [against(label, found) for label, found in differences.items() if is_clear(found)]
    unclear = [against(label, found) for label, found in differences.items() if not is_clear(found)]
    return join(beginning, ": ", "; ".join(clear + unclear), ".")


def against(label: str, found: dict[str, Any]) -> str:
    """Return a difference in words."""
    text = difference_text(found)
    if not is_clear(found):
        return f"no clear difference from {_called(label)} ({text} points)"
    return f"{text[1:]} points {'above' if found['value'] > 0 else 'below'} {_called(label)}"


def _called(label: str) -> str:
    return "the untrained encoder" if label == "untrained" else label


def _line(anchor: str, name: str, result: dict[str, Any], ours: str) -> Markup:
    task = headline_task(result)
    words = tag("p", tag("a", tag("b", name), href=f"#{anchor}"), ": ", sentence(result, task, ours))
    return tag("div", words, headline_bars(task, result["tasks"][task], ours), class_="summary")
