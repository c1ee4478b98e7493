"""The report of `hjepa bench`."""

from typing import Any

from hjepa_pl.tools.format import duration, memory, row, scaled, table


def format_report(found: dict[str, Any]) -> list[str]:
    """Return the lines of the report of `benchmark.bench`."""
    low, high = found["step_ms_range"]
    lines = [
        f"{found['device']}, {found['threads']} thread(s), {found['precision']}, batch {found['batch_size']}",
        row(
            "step",
            f"{found['step_ms']:.4g} ms (median of {found['steps_measured']}; 90 % between {low:.4g} and {high:.4g}): "
            f"{found['images_per_second']:,.4g} images/s, {scaled(found['tokens_per_second'], 'tokens')}/s",
        ),
        row("compute", _compute(found)),
        row("memory", _memory(found)),
    ]
    if found["views_grow"]:
        text = "measured at their last size, as data.resolution makes the first steps shorter; so will be the run"
        lines.append(row("views", text))
    if found["shares"]:
        parts = ", ".join(f"{name} {100 * share:.1f} %" for name, share in found["shares"].items())
        lines.append(row("time per part", f"{parts} (measured in further steps, synchronized after each part)"))
    lines.append(row("run", _run(found["run"])))
    lines.append(row("advice", " ".join(_advice(found)) or "none: no measured alternative is faster."))
    return [*lines, *_sweep(found["sweep"])]


def _compute(found: dict[str, Any]) -> str:
    text = f"{scaled(found['flops_per_step'], 'FLOP')} per step, {scaled(found['flops_per_second'], 'FLOP')}/s"
    if "ceiling" not in found:
        return text
    ceiling = scaled(found["ceiling"]["flops_per_second"], "FLOP")
    return (
        f"{text}: {100 * found['utilization']:.0f} % of the {ceiling}/s that matrix products reach on this machine "
        f"({found['ceiling']['product']})"
    )


def _memory(found: dict[str, Any]) -> str:
    kind = "peak allocated on the device" if found["device_type"] == "cuda" else "peak growth of the process"
    peak = f"{memory(found['peak_bytes'])} {kind}"
    largest = found.get("largest_batch")
    if largest is None:
        return peak
    size = int(float(f"{largest['batch_size']:.2g}"))
    if largest["estimate"]:
        free = memory(largest["available_bytes"])
        return f"{peak}; largest batch about {size:,} (estimated for {free} of free memory)"
    return f"{peak}; largest batch about {largest['batch_size']:,} (tried)"


def _run(run: dict[str, Any]) -> str:
    if run["seconds"] is None:
        return f"{duration(run['epoch_seconds'])} per epoch, after {duration(run['start_seconds'])} of startup"
    parts = [f"startup {duration(run['start_seconds'])}", f"{run['steps']:,.0f} steps {duration(run['steps_seconds'])}"]
    parts.append(f"epoch ends {duration(run['epoch_ends_seconds'])}")
    if run["validations"]:
        parts.append(f"{run['validations']:.0f} validations {duration(run['validations_seconds'])}")
    return f"{duration(run['seconds'])} predicted for {run['epochs']:.4g} epochs ({', '.join(parts)})"


def _advice(found: dict[str, Any]) -> list[str]:
    run, other, advice = found["run"], found.get("other_precision", {}), []
    budget, fit = run["budget_seconds"], run["epochs_in_budget"]
    if budget is not None and run["seconds"] is None:
        advice.append(f"{fit:.1f} epochs fit into the time_budget of {duration(budget)}.")
    elif budget is not None and run["seconds"] > budget:
        advice.append(
            f"{run['epochs']:.4g} epochs take {duration(run['seconds'])}; {fit:.1f} fit into the time_budget of "
            f"{duration(budget)}."
        )
    elif budget is not None:
        advice.append(f"The run is shorter than its time_budget of {duration(budget)}.")
    if other.get("saves", 0.0) > 0.03:
        advice.append(f"trainer.precision={other['precision']} makes a step {100 * other['saves']:.0f} % shorter.")
    if found["shares"].get("data", 0.0) > 0.2:
        advice.append("Steps wait for data: increase data.num_workers, or use a cheaper augmentation.")
    return advice


def _sweep(points: list[dict[str, Any]]) -> list[str]:
    if not points:
        return []
    rows = [
        (f"{p['axis']} {p['value']}", f"{p['step_ms']:.4g}", f"{p['images_per_second']:,.4g}")
        for p in points
        if "error" not in p
    ]
    lines = ["", *table(("", "step, ms", "images/s"), rows)]
    return [*lines, *(f"  {p['axis']} {p['value']}: {p['error']}" for p in points if "error" in p)]
