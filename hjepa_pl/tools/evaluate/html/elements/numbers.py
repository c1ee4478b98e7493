"""Tasks, metrics and numbers in words."""

import math
import re
from collections.abc import Mapping
from typing import Any

from hjepa_pl.evaluation.tasks import title_of

HEADINGS = {
    "knn": "k-NN",
    "linear": "Linear probe",
    "few_shot": "Few labels",
    "retrieval": "Retrieval",
    "quality": "Quality, without labels",
    "attentive": "Attentive probe",
    "finetune": "Fine-tuned",
}
"""Headings of tasks; others have their title in tables."""
_METRICS = {
    "top5": "top-5 accuracy, %",
    "accuracy": "accuracy, %",
    "validation": "on the validation split, %",
    "map": "mean average precision, %",
    "l2": "L2 penalty",
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "train_seconds": "seconds of training",
    "rankme": "RankMe",
    "effective_rank": "effective rank",
    "alpha_req": "α-ReQ",
    "dead_dimensions": "dead dimensions, %",
}
_COUNTED = {
    r"k(\d+)": "accuracy, k = {}, %",
    r"shot(\d+)": "{} of each class, %",
    r"percent(\d+)": "{} % of all labels, %",
    r"recall(\d+)": "recall at {}, %",
}


def heading(task: str) -> str:
    """Return the heading of a task."""
    return HEADINGS.get(task) or title_of(task)


def metric_title(name: str) -> str:
    """Return a metric's name in words.

    Example:
        >>> metric_title("k10"), metric_title("effective_rank"), metric_title("of_my_own")
        ('accuracy, k = 10, %', 'effective rank', 'of my own')
    """
    for pattern, words in _COUNTED.items():
        if found := re.fullmatch(pattern, name):
            return words.format(found[1])
    return _METRICS.get(name) or name.replace("_", " ")


def metric_names(metrics: Mapping[str, Any]) -> list[str]:
    """Return the names of what a task measured, without intervals and seconds; the headline is first."""
    return [n for n, v in metrics.items() if not n.endswith(("interval", "seconds")) and _is_number(v)]


def metric_text(name: str, metrics: Mapping[str, Any]) -> str:
    """Return a metric as text: percentages with one decimal and ±, others with three digits; a dash without a value."""
    value = number(name, metrics)
    if value is None:
        return "–"
    if not metric_title(name).endswith("%"):
        return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", "−")
    half = half_width(name, metrics)
    return f"{value:.1f}" if half is None else f"{value:.1f} ± {half:.1f}"


def number(name: str, metrics: Mapping[str, Any]) -> float | None:
    """Return the value of a metric; None if it is missing or not a number."""
    value = metrics.get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def half_width(name: str, metrics: Mapping[str, Any]) -> float | None:
    """Return half the width of a metric's 95 % interval; None without one."""
    if f"{name}_interval" in metrics:
        return float(metrics[f"{name}_interval"])
    if "interval" in metrics and name == metric_names(metrics)[0]:
        low, high = metrics["interval"]
        return (high - low) / 2
    return None


def difference_text(found: Mapping[str, Any]) -> str:
    """Return a difference with half the width of its interval: "+1.2 ± 0.5"."""
    low, high = found["interval"]
    return f"{found['value']:+.1f} ± {(high - low) / 2:.1f}".replace("-", "−")


def is_clear(found: Mapping[str, Any]) -> bool:
    """Return whether the interval of a difference leaves out zero."""
    low, high = found["interval"]
    return low > 0 or high < 0


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
