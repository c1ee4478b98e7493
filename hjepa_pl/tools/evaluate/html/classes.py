"""Accuracy by class, and which classes are taken for which."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from hjepa_pl.tools.evaluate.html.elements.markup import Markup, join, tag
from hjepa_pl.tools.evaluate.html.elements.parts import Bar, bars, card, legend, note, short, table
from hjepa_pl.tools.evaluate.suite import Prediction

_BARS = 30
"""Most classes in the chart; of more, those with the lowest and the highest accuracy are shown."""
_CELLS = 20
"""Most classes in the matrix; of more, those with most errors."""
_PAIRS = 8


def class_accuracy(label: Tensor, test_y: Tensor, num_classes: int) -> Tensor:
    """Return the accuracy on the images of each class in percent, (C,); NaN for a class without an image."""
    count = torch.bincount(test_y, minlength=num_classes)
    return 100.0 * torch.bincount(test_y[label == test_y], minlength=num_classes).double() / count


def accuracy_card(
    names: list[str], test_y: Tensor, predictions: Mapping[str, Prediction], ours: str, by: str
) -> Markup:
    """Return the chart of the accuracy by class, lowest first.

    Args:
        names: Of the classes.
        test_y: (M,) labels.
        predictions: Of one task, by network.
        ours: Label of the judged network.
        by: The task, as a heading.
    """
    accuracy = {label: class_accuracy(p.label, test_y, len(names)) for label, p in predictions.items()}
    count = torch.bincount(test_y, minlength=len(names)).tolist()
    order = [c for c in accuracy[ours].argsort().tolist() if count[c]]
    text = f"{by}; lowest first."
    if len(order) > _BARS:
        text = f"{by}; the {_BARS // 2} lowest and the {_BARS // 2} highest of {len(order)} classes."
        order = order[: _BARS // 2] + order[-(_BARS // 2) :]
    others = [label for label in accuracy if label != ours][:2]
    rows = [
        Bar(names[c], float(accuracy[ours][c]), f"{accuracy[ours][c]:.1f} %", ours=True,
            marks=tuple(float(accuracy[label][c]) for label in others))
        for c in order
    ]  # fmt: skip
    keys = [(tag("span", class_="swatch"), ours)]
    keys += [(tag("span", class_=f"mark m{i}"), label) for i, label in enumerate(others)]
    sizes = sorted(count[c] for c in order)
    images = f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}"
    return card(
        "Accuracy by class", note(f"{text} {images} test images of each class."), legend(keys), bars(rows, bold=False)
    )


def confusion_card(names: list[str], test_y: Tensor, label: Tensor, by: str) -> Markup:
    """Return the confusion matrix, and the pairs of classes that are confused most often."""
    matrix = multiclass_confusion_matrix(label, test_y, num_classes=len(names))
    wrong = matrix.clone().fill_diagonal_(0)
    chosen, text = list(range(len(names))), ""
    if len(names) > _CELLS:
        chosen = sorted((wrong.sum(0) + wrong.sum(1)).argsort(descending=True, stable=True)[:_CELLS].tolist())
        text = f" The {_CELLS} of {len(names)} classes with most errors."
    parts = [note(f"{by}: images of the row's class that are taken for the column's.{text}"), _matrix(
        [names[c] for c in chosen], matrix[chosen][:, chosen], matrix[chosen].sum(1)
    )]  # fmt: skip
    if pairs := _pairs(wrong, names):
        parts += [tag("p", "Most frequent errors", class_="soft"), table(["class taken for another", "images"], pairs)]
    return card("Confusion matrix", *parts)


def _matrix(names: list[str], matrix: Tensor, totals: Tensor) -> Markup:
    """Return a table whose cells are the darker the larger their share of the row."""
    head = [tag("th", tag("span", short(name, 16), title=name), scope="col") for name in names]
    rows = []
    for r, name in enumerate(names):
        cells = []
        for c, count in enumerate(matrix[r].tolist()):
            share = count / max(1, int(totals[r]))
            style = f"background:rgba(0,84,140,{share**0.5:.2f});color:{'#fff' if share > 0.3 else '#1b1f24'}"
            cells.append(
                tag("td", str(count) if count else "", style=style if count else None, class_="hit" if r == c else None)
            )
        rows.append(tag("tr", tag("th", short(name, 16), scope="row", title=name), *cells))
    inner = join(tag("thead", tag("tr", tag("th"), *head)), tag("tbody", *rows))
    return tag("div", tag("table", inner, class_="matrix"), class_="scroll", tabindex=0)


def _pairs(wrong: Tensor, names: list[str]) -> list[list[str]]:
    """Return the pairs of classes that are confused more than once, the most frequent first."""
    count, index = wrong.flatten().sort(descending=True, stable=True)
    found = [(n, i) for n, i in zip(count[:_PAIRS].tolist(), index[:_PAIRS].tolist(), strict=True) if n > 1]
    return [[f"{short(names[i // len(names)])} → {short(names[i % len(names)])}", f"{n:,}"] for n, i in found]
