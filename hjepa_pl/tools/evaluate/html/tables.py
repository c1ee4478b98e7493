"""Tables of all tasks, and the further kinds of features."""

import sys
from typing import Any

from hjepa_pl.tools.evaluate.html.elements.markup import Markup, tag
from hjepa_pl.tools.evaluate.html.elements.numbers import (
    difference_text,
    half_width,
    heading,
    metric_names,
    metric_text,
    metric_title,
    number,
)
from hjepa_pl.tools.evaluate.html.elements.parts import Bar, bars, card, note, table


def task_cards(result: dict[str, Any], ours: str) -> list[Markup]:
    """Return a card for each task: metrics in rows, networks in columns, then the differences."""
    return [
        card(heading(task), task_table(by_network, ours, result["differences"].get(task, {})))
        for task, by_network in result["tasks"].items()
    ]


def task_table(by_network: dict[str, Any], ours: str, differences: dict[str, Any]) -> Markup:
    """Return the table of a task.

    Args:
        by_network: Its metrics, by network.
        ours: Label of the judged network.
        differences: Of the judged network's accuracy and those of the others, by their labels.
    """
    names = list(dict.fromkeys(name for metrics in by_network.values() for name in metric_names(metrics)))
    rows = [[metric_title(name), *(metric_text(name, m) for m in by_network.values())] for name in names]
    if differences:
        cells = [difference_text(differences[label]) if label in differences else "" for label in by_network]
        rows.insert(1, ["lead over it, points", *cells])
    return table(["", *by_network], rows, ours=1 + list(by_network).index(ours))


def levels_card(result: dict[str, Any], main: str, ours: str) -> Markup:
    """Return the card of the further kinds of features, level by level."""
    kinds: dict[str, dict[str, Any]] = result["features"]
    parts: list[Markup] = []
    tasks = next(iter(kinds.values()), {})
    for task in tasks:
        found = {main: result["tasks"][task][ours]} | {kind: values[task] for kind, values in kinds.items()}
        rows = []
        for kind, metrics in sorted(found.items(), key=lambda item: _depth(item[0])):
            name = metric_names(metrics)[0]
            value, text = number(name, metrics) or 0.0, metric_text(name, metrics)
            rows.append(Bar(kind, value, text, half_width(name, metrics), kind == main))
        parts += [tag("p", f"{heading(task)}, %", class_="soft"), bars(rows)]
    if not parts:
        blocks = "--features last.mean,1.mean,2.mean"
        parts = [note(f"Only {main} features were judged. ", tag("code", blocks), " judges blocks 1 and 2 too.")]
    else:
        parts.append(note(f"Bold: {main}, the features that all other figures are of."))
    return card("Level by level", *parts)


def cka_card(result: dict[str, Any], ours: str) -> Markup:
    """Return the card of the similarity of the judged network's features to its baselines'."""
    rows = [Bar(label, value or 0.0, f"{value:.2f}" if value is not None else "–") for label, value in
            result["cka"].items()]  # fmt: skip
    remark = f"Linear CKA of the test images' features with those of {ours}: 1 is the same up to rotation and scale."
    return card("Similarity to the baselines", bars(rows, 1.0), note(remark))


def _depth(kind: str) -> tuple[int, str]:
    """Return what sorts kinds of features from the first block to the last."""
    block = kind.partition(".")[0]
    return (int(block), kind) if block.isdigit() else (sys.maxsize, kind)
