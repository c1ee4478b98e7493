"""report.html: one function from an evaluation to a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.tools.evaluate.extract import Pass
from hjepa_pl.tools.evaluate.html.about import about
from hjepa_pl.tools.evaluate.html.calibration import calibration_cards
from hjepa_pl.tools.evaluate.html.classes import accuracy_card, confusion_card
from hjepa_pl.tools.evaluate.html.elements.markup import Markup, each, join, tag
from hjepa_pl.tools.evaluate.html.elements.numbers import heading
from hjepa_pl.tools.evaluate.html.elements.parts import card, cards, document, note
from hjepa_pl.tools.evaluate.html.embedding import embedding_card
from hjepa_pl.tools.evaluate.html.maps import maps_card
from hjepa_pl.tools.evaluate.html.neighbors import neighbors_card
from hjepa_pl.tools.evaluate.html.spectrum import spectrum_card
from hjepa_pl.tools.evaluate.html.summary import headline_task, summary
from hjepa_pl.tools.evaluate.html.tables import cka_card, levels_card, task_cards
from hjepa_pl.tools.evaluate.networks import Network
from hjepa_pl.tools.evaluate.suite import JudgedSet
from hjepa_pl.utils.atomic_file import atomic_write

PAGE = "report.html"
_WITH_PICTURES = 8
"""Datasets with pictures and charts; further ones have tables only, which keeps the page small."""


def write_html(
    report: dict[str, Any], judged: Sequence[JudgedSet], networks: Sequence[Network], how: Pass, out: Path
) -> None:
    """Write report.html: a page with everything in it, readable without network and without scripts.

    Args:
        report: The content of report.json.
        judged: What was found on each dataset.
        networks: The judged one first.
        how: How images are passed through the networks.
        out: The folder.
    """
    model = report["model"]
    title = f"Evaluation of {model['source']}"
    sets = [
        _section(f"set-{i}", found, report, networks, how if i < _WITH_PICTURES else None)
        for i, found in enumerate(judged)
    ]
    links = [("Summary", "summary"), *((s.data.name, f"set-{i}") for i, s in enumerate(judged)), ("Protocol", "about")]
    images = model["images"]
    line = (
        f"{model['label']}, {model['features']} features of {images['height']} × {images['width']} images, protocol "
        f"{report['protocol']['name']}, {report['created'][:10]}"
    )
    head = [
        tag("h1", title),
        tag("p", line, class_="soft"),
        tag("nav", each("span", (tag("a", name, href=f"#{anchor}") for name, anchor in links))),
    ]
    with atomic_write(out / PAGE) as file:
        file.write(document(title, join(*head, summary(report), *sets, about(report))))


def _section(
    anchor: str, found: JudgedSet, report: dict[str, Any], networks: Sequence[Network], how: Pass | None
) -> Markup:
    """Return the section of a dataset; without pictures if `how` is None."""
    result, ours = found.result, networks[0].label
    size = f"{result['train']:,} training and {result['test']:,} test images, {len(result['classes'])} classes"
    levels = [levels_card(result, report["model"]["features"], ours), cka_card(result, ours)]
    parts = [tag("h2", found.data.name, id=anchor), tag("p", size, class_="soft")]
    parts.append(cards(*task_cards(result, ours), columns=2))
    if how is None:
        none = card("Pictures", note(f"Only the first {_WITH_PICTURES} datasets have pictures and charts."))
        parts.append(cards(*levels, none, columns=3))
    else:
        data, features, spec, bad = found.data, found.features[ours], networks[0].spec, BadFiles()
        plane = embedding_card(features[1], data.test_y, data.classes, report["seed"])
        spectrum = spectrum_card(found.features)
        parts += [
            cards(*_predicted(found, ours), columns=3),
            maps_card(networks, data, how, bad),
            neighbors_card(data, features, spec, bad),
            cards(plane, spectrum, *levels, columns=3),
        ]
    return tag("section", *parts)


def _predicted(found: JudgedSet, ours: str) -> list[Markup]:
    """Return the cards that need predictions."""
    data = found.data
    if not found.predictions:
        none = note("None of the tasks classified the test images; --tasks linear or knn do.")
        return [card("Accuracy by class, confusion matrix, reliability", none)]
    task = headline_task(found.result)
    if (task, ours) not in found.predictions:
        task = next(iter(found.predictions))[0]
    by_network = {network: p for (name, network), p in found.predictions.items() if name == task}
    return [
        accuracy_card(data.classes, data.test_y, by_network, ours, heading(task)),
        confusion_card(data.classes, data.test_y, by_network[ours].label, heading(task)),
        *calibration_cards(found.predictions, data.test_y, ours, task),
    ]
