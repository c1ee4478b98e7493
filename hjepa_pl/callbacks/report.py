"""The table that a run ends with."""

import math

from rich.table import Table
from rich.text import Text

_ROWS = (
    # label, suffix of the figure's name: pattern with {} for knn / linear
    ("raw pixels", "pixels_{}"),
    ("untrained", "untrained_{}"),
)


def probe_table(results: dict[str, float], judged: str) -> tuple[Table | Text, ...]:
    """Return the table of probe figures and, where it holds, the sentence that the online network is better.

    Args:
        results: `ProbeCallback.results`.
        judged: Name of the judged network.
    """
    sets = sorted({name.split("/")[1] for name in results if name.startswith("probe/")})
    trained = [(f"trained ({judged})", "{}")]
    if any(name.endswith("_online") for name in results):
        trained.append(("trained (online)", "{}_online"))
    table = Table(title="Probes, accuracy in %", caption=f"Judged network: the {judged} encoder.", title_justify="left")
    table.add_column("features")
    for name in sets:
        for figure in ("k-NN", "linear"):
            table.add_column(f"{name}\n{figure}", justify="right", no_wrap=True)
    for label, pattern in (*_ROWS, *trained):
        names = [f"probe/{s}/{pattern.format(figure)}" for s in sets for figure in ("knn", "linear")]
        if any(name in results for name in names):
            style = "bold" if pattern == "{}" else None
            table.add_row(label, *(_percent(results.get(name)) for name in names), style=style)
    return (table, *(Text(line) for line in [*worse_than_untrained(results), *online_is_better(results)]))


def online_is_better(results: dict[str, float]) -> list[str]:
    """Return one sentence when the online network beats the judged one by more than one point, else nothing."""
    gaps = {
        name.removesuffix("_online"): value - results[name.removesuffix("_online")]
        for name, value in results.items()
        if name.endswith("_online") and name.removesuffix("_online") in results
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
