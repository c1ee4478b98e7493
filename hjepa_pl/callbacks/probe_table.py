"""The table that a run ends with."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
from rich.table import Table
from rich.text import Text

from hjepa_pl.callbacks.selection import selection_metrics
from hjepa_pl.evaluation.probes import PROBES

_ROWS = (
    # label, suffix of the figure's name: pattern with {} for the probe
    ("raw pixels", "pixels_{}"),
    ("untrained", "untrained_{}"),
)


class Best(NamedTuple):
    """The best checkpoint of a run."""

    monitor: str
    """The metric that it was chosen by."""
    value: float
    path: str


def best_checkpoint(trainer: pl.Trainer) -> Best | None:
    """Return the best checkpoint of the first callback that ranks them by a validation metric of a probe."""
    callbacks: Any = trainer.checkpoint_callbacks
    for callback in callbacks:
        monitor, score = getattr(callback, "monitor", None), getattr(callback, "best_model_score", None)
        if monitor and monitor.startswith("probe/") and score is not None and callback.best_model_path:
            return Best(monitor, float(score), str(callback.best_model_path))
    return None


def probe_table(results: dict[str, float], judged: str, best: Best | None = None) -> tuple[Table | Text, ...]:
    """Return the table of test accuracies, the best checkpoint, and a sentence where the online network is better.

    Args:
        results: `ProbeCallback.results`.
        judged: Name of the judged network.
        best: The best checkpoint, if any was chosen.
    """
    sets = sorted({name.split("/")[1] for name in results if name.startswith("probe/")})
    trained = [(f"trained ({judged})", "{}")]
    if any(name.endswith("_online") for name in results):
        trained.append(("trained (online)", "{}_online"))
    table = Table(title="Probes, accuracy in %", caption=f"Judged network: the {judged} encoder.", title_justify="left")
    table.add_column("features")
    for name in sets:
        for title in PROBES.values():
            table.add_column(f"{name}\n{title}", justify="right", no_wrap=True)
    for label, pattern in (*_ROWS, *trained):
        names = [f"probe/{s}/{pattern.format(figure)}" for s in sets for figure in PROBES]
        if any(name in results for name in names):
            style = "bold" if pattern == "{}" else None
            table.add_row(label, *(_percent(results.get(name)) for name in names), style=style)
    lines = [*worse_than_untrained(results), *online_is_better(results)]
    if best is not None:
        lines.insert(0, f"Best by validation: {Path(best.path).name} ({best.monitor} {best.value:.1f}).")
    return (table, *(Text(line) for line in lines))


def online_is_better(results: dict[str, float]) -> list[str]:
    """Return one sentence when the online network beats the judged one by more than one point, else nothing.

    Which to take is a choice, so it is made by the validation split.
    """
    sets = list(dict.fromkeys(name.split("/")[1] for name in results if name.startswith("probe/")))
    gaps = {
        name: results[f"{name}_online"] - results[name]
        for name in selection_metrics(sets)
        if name in results and f"{name}_online" in results
    }
    name = max(gaps, key=lambda n: gaps[n], default="")
    if not name or not gaps[name] > 1:
        return []
    return [
        f"The online encoder is better than the target by {gaps[name]:.1f} points on {name.removeprefix('probe/')}: "
        "take `context_encoder` from the checkpoint, train longer, or lower ema.momentum."
    ]


def worse_than_untrained(results: dict[str, float]) -> list[str]:
    """Return one sentence when training has cost a set more than one point on k-NN and on linear, else nothing."""
    for name in sorted(results):
        place, _, figure = name.rpartition("/")
        both = [f"{place}/{kind}" for kind in ("knn", "linear")]
        baselines = [f"{place}/untrained_{kind}" for kind in ("knn", "linear")]
        if figure != "knn" or not results.keys() >= {*both, *baselines}:
            continue
        now, before = ([results[n] for n in names] for names in (both, baselines))
        if all(n < b - 1 for n, b in zip(now, before, strict=True)):
            return [
                f"Training has made the features worse than the untrained encoder's on {place.removeprefix('probe/')} "
                f"(k-NN {now[0]:.1f} from {before[0]:.1f}, linear {now[1]:.1f} from {before[1]:.1f}): lower "
                "optimizer.lr, or train longer."
            ]
    return []


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"
