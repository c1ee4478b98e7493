"""Reliability diagrams: whether a prediction with confidence p is right in a fraction p of the cases."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from hjepa_pl.tools.evaluate.html.elements.markup import Markup, tag
from hjepa_pl.tools.evaluate.html.elements.numbers import heading
from hjepa_pl.tools.evaluate.html.elements.parts import card, note, table
from hjepa_pl.tools.evaluate.html.elements.style import OURS
from hjepa_pl.tools.evaluate.html.elements.svg import Axes
from hjepa_pl.tools.evaluate.suite import Prediction

BINS = 15
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def calibration_error(prediction: Prediction, test_y: Tensor) -> float:
    """Return the expected calibration error of the predicted classes (arXiv:1706.04599, eq. 3), in percent."""
    correct = (prediction.label == test_y).int()
    return 100.0 * float(binary_calibration_error(prediction.confidence.clamp(0, 1), correct, n_bins=BINS, norm="l1"))


def calibration_cards(
    predictions: Mapping[tuple[str, str], Prediction], test_y: Tensor, ours: str, first: str
) -> list[Markup]:
    """Return a reliability diagram for each task that classifies, and the calibration errors of all networks.

    Args:
        predictions: By task and network.
        test_y: (M,) labels.
        ours: Label of the judged network.
        first: The task whose diagram comes first.
    """
    tasks = sorted(dict.fromkeys(task for task, _ in predictions), key=lambda task: task != first)
    networks = dict.fromkeys(network for _, network in predictions)
    rows = [
        [network, *(_error_text(predictions.get((task, network)), test_y) for task in tasks)] for network in networks
    ]
    remark = (
        f"Bars: accuracy of the test images in {BINS} bins of confidence; on the dashed line, confidence is right. "
        "Dark feet: images in the bin, the tallest for the fullest. Expected calibration error, %:"
    )
    cards = []
    for task in tasks:
        below = [note(remark), table(["", *map(heading, tasks)], rows)] if task == first else []
        title = f"Reliability, {heading(task)}"
        cards.append(card(title, _diagram(predictions[task, ours], test_y, heading(task)), *below))
    return cards


def _error_text(prediction: Prediction | None, test_y: Tensor) -> str:
    return "–" if prediction is None else f"{calibration_error(prediction, test_y):.1f}"


def _diagram(prediction: Prediction, test_y: Tensor, task: str) -> Markup:
    axes = Axes((0, 1), (0, 1))
    bin_of = (prediction.confidence.clamp(0, 1) * BINS).long().clamp(max=BINS - 1)
    count = torch.bincount(bin_of, minlength=BINS)
    right = torch.bincount(bin_of[prediction.label == test_y], minlength=BINS)
    foot, content = axes.y(0), []
    for i, (total, hits) in enumerate(zip(count.tolist(), right.tolist(), strict=True)):
        if total:
            left, width = axes.x(i / BINS) + 1, axes.x(1 / BINS) - axes.x(0) - 2
            top = axes.y(hits / total)
            bar = tag("rect", x=left, y=top, width=width, height=foot - top, fill="#a9cfe8", stroke=OURS)
            height = max(1.0, 40.0 * total / int(count.max()))
            share = tag("rect", x=left, y=foot - height, width=width, height=height, fill="#1b1f24", opacity=0.8)
            content.append(tag("g", tag("title", f"{hits:,} of {total:,} right"), bar, share))
    line = tag("path", d=axes.path((0, 1), (0, 1)), stroke="#1b1f24", stroke_dasharray="5 4", stroke_width=1.5)
    label = f"Reliability diagram of {task}: accuracy against confidence"
    return axes.draw([*content, line], ("confidence", "accuracy"), (_TICKS, _TICKS), label)
