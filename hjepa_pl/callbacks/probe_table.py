"""Table of the probes' accuracies at the end of a run."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
from rich.table import Table
from rich.text import Text

from hjepa_pl.callbacks.selection import selection_metrics
from hjepa_pl.evaluation.probes import PROBES

_ROWS = (
    # label, metric with {} for the probe
    ("raw pixels", "pixels_{}"),
    ("untrained", "untrained_{}"),
)


class Best(NamedTuple):
    """The best checkpoint of a run."""

    monitor: str
    """The metric that ranked it."""
    value: float
    path: str


def best_checkpoint(trainer: pl.Trainer) -> Best | None:
    """Return the best checkpoint of the first callback that ranks them by a metric of a probe or held-out images."""
    callbacks: Any = trainer.checkpoint_callbacks
    for callback in callbacks:
        monitor, score = getattr(callback, "monitor", None), getattr(callback, "best_model_score", None)
        if monitor and monitor.startswith(("probe/", "val/")) and score is not None and callback.best_model_path:
            return Best(monitor, float(score), str(callback.best_model_path))
    return None


def probe_table(results: dict[str, float], network: str, best: Best | None = None) -> tuple[Table | Text, ...]:
    """Return the table of test accuracies, the best checkpoint, and remarks on the networks.

    Args:
        results: `ProbeCallback.results`.
        network: Name of the evaluated network.
        best: The best checkpoint, if checkpoints were ranked.
    """
    sets = sorted({name.split("/")[1] for name in results if name.startswith("probe/")})
    trained = [(f"trained ({network})", "{}")]
    if any(name.endswith("_online") for name in results):
        trained.append(("trained (online)", "{}_online"))
    table = Table(
        title="Probes, accuracy in %", caption=f"Evaluated network: the {network} encoder.", title_justify="left"
    )
    table.add_column("features")
    for name in sets:
        for probe in PROBES.values():
            table.add_column(f"{name}\n{probe.title}", justify="right", no_wrap=True)
    for label, pattern in (*_ROWS, *trained):
        names = [f"probe/{s}/{pattern.format(probe)}" for s in sets for probe in PROBES]
        if any(name in results for name in names):
            style = "bold" if pattern == "{}" else None
            table.add_row(label, *(_percent(results.get(name)) for name in names), style=style)
    lines = [*worse_than_untrained(results), *online_is_better(results)]
    if best is not None:
        value = f"{best.value:.1f}" if best.monitor.startswith("probe/") else f"{best.value:.4g}"
        lines.insert(0, f"Best by validation: {Path(best.path).name} ({best.monitor} {value}).")
    return (table, *(Text(line) for line in lines))


def online_is_better(results: dict[str, float]) -> list[str]:
    """Return one sentence if the online network beats the evaluated one by more than one point, else nothing.

    Measured on the validation split, as it is a choice.
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
        "export it with --branch online, train longer, or lower ema.momentum."
    ]


def worse_than_untrained(results: dict[str, float]) -> list[str]:
    """Return one sentence if training cost a dataset more than one point on every probe, else nothing."""
    for name in sorted({metric.split("/")[1] for metric in results if metric.startswith("probe/")}):
        now = [results.get(f"probe/{name}/{probe}", math.nan) for probe in PROBES]
        before = [results.get(f"probe/{name}/untrained_{probe}", math.nan) for probe in PROBES]
        if all(n < b - 1 for n, b in zip(now, before, strict=True)):
            changes = zip(PROBES.values(), now, before, strict=True)
            return [
                f"Training has made the features worse than the untrained encoder's on {name} "
                f"({', '.join(f'{probe.title} {n:.1f} from {b:.1f}' for probe, n, b in changes)}): lower "
                "optimizer.lr, or train longer."
            ]
    return []


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"
