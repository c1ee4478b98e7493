"""compare.html: evaluations side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hjepa_pl.tools.evaluate.comparable import Evaluation
from hjepa_pl.tools.evaluate.html.classes import accuracy_card
from hjepa_pl.tools.evaluate.html.elements.markup import Markup, each, join, tag
from hjepa_pl.tools.evaluate.html.elements.numbers import heading
from hjepa_pl.tools.evaluate.html.elements.parts import card, cards, document, facts, note, table
from hjepa_pl.tools.evaluate.html.summary import headline_task, summary
from hjepa_pl.tools.evaluate.html.tables import task_cards
from hjepa_pl.tools.evaluate.suite import Prediction
from hjepa_pl.utils.atomic_file import atomic_write

COMPARISON_PAGE = "compare.html"
_LONGEST = 40
"""Most characters of a cell; paths are cut off."""


def write_comparison_html(result: dict[str, Any], found: Sequence[Evaluation], out: Path) -> None:
    """Write compare.html.

    Args:
        result: The content of compare.json.
        found: The evaluations, in its order.
        out: The folder.
    """
    first, *others = (evaluation.name for evaluation in found)
    title = f"{first} compared with {', '.join(others)}"
    line = f"protocol {result['protocol']['name']}, {result['created'][:10]}"
    sections = [_section(f"set-{i}", name, result, found) for i, name in enumerate(result["sets"])]
    content = join(
        tag("h1", title),
        tag("p", line, class_="soft"),
        summary({"model": {"label": first}, "sets": result["sets"]}),
        tag("ul", each("li", result["sentences"])),
        each("p", result["notes"], class_="note"),
        *sections,
        _about(result),
    )
    with atomic_write(out / COMPARISON_PAGE) as file:
        file.write(document(title, content))


def _section(anchor: str, name: str, result: dict[str, Any], found: Sequence[Evaluation]) -> Markup:
    entry, first = result["sets"][name], found[0].name
    size = f"{entry['train']:,} training and {entry['test']:,} test images, {len(entry['classes'])} classes"
    parts = [tag("h2", name, id=anchor), tag("p", size, class_="soft")]
    parts.append(cards(*task_cards(entry, first), columns=2))
    task = headline_task(entry)
    predictions = {}
    for e in found:
        key = f"{name}/{task}/{e.subject}"
        if f"{key}/label" in e.arrays:
            predictions[e.name] = Prediction(e.arrays[f"{key}/label"].long(), e.arrays[f"{key}/confidence"])
    if len(predictions) == len(found):
        labels = found[0].arrays[f"{name}/labels"].long()
        parts.append(cards(accuracy_card(entry["classes"], labels, predictions, first, heading(task)), columns=2))
    return tag("section", *parts)


def _about(result: dict[str, Any]) -> Markup:
    keys = {"folder": "folder", "precision": "precision", "seed": "seed", "created": "time"}
    evaluations = result["evaluations"]
    rows = [
        [title, *("–" if e[key] is None else str(e[key])[:_LONGEST] for e in evaluations)]
        for key, title in keys.items()
    ]
    rows[1:1] = [
        [title, *(str(e["model"][key])[:_LONGEST] for e in evaluations)]
        for key, title in (("source", "model"), ("features", "features"))
    ]
    rows.append(["commit", *((e["commit"] or "–")[:12] for e in evaluations)])
    rows.append(["hash of the weights", *(e["model"]["identity"][:16] for e in evaluations)])
    remark = (
        "Leads are of the first evaluation; their 95 % intervals are of the paired bootstrap: the same test images are "
        "drawn for both."
    )
    protocol = [(key, str(value)) for key, value in result["protocol"].items() if value not in ("", None)]
    return tag(
        "section",
        tag("h2", "How it was measured", id="about"),
        card("Evaluations", table(["", *(e["name"] for e in evaluations)], rows, ours=1), note(remark)),
        card("Protocol", facts(protocol)),
    )
