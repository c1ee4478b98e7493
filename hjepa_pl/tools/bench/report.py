"""How `hjepa bench` says what it found."""

from typing import Any

from hjepa_pl.tools.format import duration, memory, row, scaled, table


def shown(found: dict[str, Any]) -> list[str]:
    """Return the lines that say what was found."""
    low, high = found["step_ms_range"]
    lines = [
        f"{found['device']}, {found['threads']} thread(s), {found['precision']}, batch {found['batch_size']}",
        row(
            "step",
            f"{found['step_ms']:.4g} ms (median of {found['steps_measured']}, most between {low:.4g} and {high:.4g}): "
            f"{found['images_per_second']:,.4g} images/s, {scaled(found['tokens_per_second'], 'tokens')}/s",
        ),
        row(
            "compute",
            f"{scaled(found['flops_per_step'], 'FLOP')} a step: {scaled(found['flops_per_second'], 'FLOP')}/s, "
            f"{100 * found['utilisation']:.0f} % of the {scaled(found['ceiling']['flops_per_second'], 'FLOP')}/s of "
            f"matrix products here ({found['ceiling']['product']})",
        ),
        row("memory", _memory(found)),
    ]
    if found["shares"]:
        said = ", ".join(f"{name} {100 * share:.1f} %" for name, share in found["shares"].items())
        lines.append(row("time goes to", f"{said} (a second pass, with a wait after each part)"))
    lines.append(row("run", _run(found["run"])))
    lines.append(row("advice", " ".join(_advice(found)) or "none: nothing that was measured would be faster."))
    return [*lines, *_sweep(found["sweep"])]


def _memory(found: dict[str, Any]) -> str:
    kind = "allocated at most" if found["device_type"] == "cuda" else "more than before, at most (the process)"
    said = f"{memory(found['peak_bytes'])} {kind}"
    largest = found["largest_batch"]
    if largest is None:
        return said
    size = int(float(f"{largest['batch_size']:.2g}"))
    if largest["estimate"]:
        free = memory(largest["available_bytes"])
        return f"{said}; the largest batch is about {size:,}, an estimate from the {free} that are free"
    return f"{said}; the largest batch that fits is about {largest['batch_size']:,}, found by trial"


def _run(run: dict[str, Any]) -> str:
    if run["seconds"] is None:
        return f"epochs of {duration(run['epoch_seconds'])}, after {duration(run['start_seconds'])} to start"
    parts = [f"start {duration(run['start_seconds'])}", f"{run['steps']:,.0f} steps {duration(run['steps_seconds'])}"]
    parts.append(f"ends of epochs {duration(run['epoch_ends_seconds'])}")
    if run["validations"]:
        parts.append(f"{run['validations']:.0f} validations {duration(run['validations_seconds'])}")
    return f"{duration(run['seconds'])} predicted for {run['epochs']:.4g} epochs ({', '.join(parts)})"


def _advice(found: dict[str, Any]) -> list[str]:
    run, other, said = found["run"], found["other_precision"], []
    budget, fit = run["budget_seconds"], run["epochs_in_budget"]
    if budget is not None and run["seconds"] is None:
        said.append(f"{fit:.1f} epochs fit into the time_budget of {duration(budget)}.")
    elif budget is not None and run["seconds"] > budget:
        said.append(
            f"{run['epochs']:.4g} epochs need {duration(run['seconds'])} here; {fit:.1f} fit into the time_budget of "
            f"{duration(budget)}."
        )
    elif budget is not None:
        said.append(f"The run ends before its time_budget of {duration(budget)}.")
    if other.get("saves", 0.0) > 0.03:
        said.append(f"{other['precision']} would save {100 * other['saves']:.0f} % of a step.")
    if found["shares"].get("data", 0.0) > 0.2:
        said.append("Much of a step waits for data: more num_workers, or a cheaper augmentation, would help.")
    return said


def _sweep(points: list[dict[str, Any]]) -> list[str]:
    if not points:
        return []
    rows = [
        (f"{p['axis']} {p['value']}", f"{p['step_ms']:.4g}", f"{p['images_per_second']:,.4g}")
        for p in points
        if "refused" not in p
    ]
    lines = ["", *table(("", "step, ms", "images/s"), rows)]
    return [*lines, *(f"  {p['axis']} {p['value']}: {p['refused']}" for p in points if "refused" in p)]
