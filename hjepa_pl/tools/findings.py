"""What `hjepa bench` finds out about a config, as plain values, and how it says it."""

import inspect
import statistics
from typing import Any, NamedTuple

import torch

from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.tools.capacity import available_memory, by_count, by_trial
from hjepa_pl.tools.configs import DryCLI, prepare, scratch_folder, sentence
from hjepa_pl.tools.counting import StepCount, StepCounter, steps_by_shape
from hjepa_pl.tools.text import duration, memory, row, scaled, table
from hjepa_pl.tools.trial import BenchCLI, Trial, ceiling, forecast, measure
from hjepa_pl.types import ConfigError

AXES = ("batch", "precision", "compile")
_PARTS = 10
_FEW, _SHORT = 10, 20.0
_PRECISIONS = ("32-true", "bf16-mixed")


class Question(NamedTuple):
    """What is asked."""

    words: list[str]
    """The config and keys, as for fit."""
    steps: tuple[int, float]
    """To measure: how many, and for how many seconds at most."""
    sweep: tuple[str, ...]
    """Axes along which other values are measured too."""


class Twin(NamedTuple):
    """What is counted of a config without computing."""

    counter: StepCounter
    views: Any
    batch_size: int
    counts: list[StepCount]
    """For every row of the masks' table."""
    heaviest: int
    """The step that needs most memory."""

    @property
    def flops(self) -> float:
        """Of a batch, on average over the table."""
        return statistics.fmean(c.flops for c in self.counts)


def refuse_axis(axis: str) -> None:
    """Refuse an axis that the module has no key for."""
    if axis == "compile" and "compile" not in inspect.signature(HJEPALightningModule.__init__).parameters:
        raise ConfigError("--sweep compile does nothing: HJEPALightningModule has no key 'compile'; leave it out.")


def count(words: list[str]) -> Twin:
    """Count a config's steps on networks without storage."""
    with scratch_folder() as scratch:
        cli: DryCLI = prepare(words, DryCLI, scratch)
    if not isinstance(cli.model, HJEPALightningModule) or cli.views is None:
        raise ConfigError(
            f"bench measures HJEPALightningModule with MultiDatasetDataModule, not {type(cli.model).__name__} with "
            f"{type(cli.datamodule).__name__}."
        )
    half, steps = str(cli.trainer.precision) != "32-true", list(steps_by_shape(cli.model.masks).values())
    counter = StepCounter(cli.model, cli.views, cli.trainer.strategy.root_device, half)
    batch_size = cli.datamodule.batch_size
    counts = [counter.count(batch_size, step) for step in steps]
    heaviest = max(zip(counts, steps, strict=True), key=lambda pair: pair[0].peak)[1]
    return Twin(counter, cli.views, batch_size, counts, heaviest)


def bench(asked: Question) -> dict[str, Any]:
    """Measure a config.

    Raises:
        ConfigError: As fit refuses it, and for what cannot be measured.
    """
    available = available_memory()
    twin = count(asked.words)
    after: dict[str, Any] = {}

    def then(cli: BenchCLI) -> None:
        device, half = cli.trainer.strategy.root_device, str(cli.trainer.precision) != "32-true"
        rows = max(p.images * p.tokens for c in twin.counts for p in c.context) * twin.batch_size
        after["ceiling"] = ceiling(cli.model, rows, device, half)
        if device.type == "cuda":
            size = by_trial(cli.model, twin.views, device, half, twin.batch_size, twin.heaviest)
            after["largest"] = {"batch_size": size, "estimate": False}
        elif device.type == "cpu" and available is not None:
            size = by_count(twin.counter, twin.views, twin.batch_size, twin.heaviest, available)
            after["largest"] = {"batch_size": size, "estimate": True, "available_bytes": available}

    trial = measure(asked.words, *asked.steps, parts=_PARTS, then=then)
    found = _of_trial(trial, twin)
    found["ceiling"] = {"flops_per_second": after["ceiling"][0], "product": after["ceiling"][1]}
    found["utilisation"] = found["flops_per_second"] / after["ceiling"][0]
    found["largest_batch"] = after.get("largest")
    found["run"] = _of_run(trial)
    found["other_precision"] = _other(asked.words, trial)
    found["sweep"] = [_point(asked.words, axis, *point) for axis in asked.sweep for point in _points(axis, trial, twin)]
    return found


def _of_trial(trial: Trial, twin: Twin) -> dict[str, Any]:
    times = sorted(trial.watch.steps)
    accumulated = trial.batch_size / twin.batch_size
    tokens = statistics.fmean(c.tokens for c in twin.counts)
    return {
        "device": trial.device,
        "threads": torch.get_num_threads(),
        "precision": trial.precision,
        "batch_size": trial.batch_size,
        "steps_measured": len(times),
        "step_ms": 1e3 * trial.step,
        "step_ms_range": [1e3 * times[len(times) // 20], 1e3 * times[-1 - len(times) // 20]],
        "images_per_second": trial.rate,
        "tokens_per_second": trial.rate * tokens,
        "peak_bytes": trial.peak,
        "flops_per_step": twin.flops * accumulated,
        "flops_per_second": twin.flops * accumulated / trial.step,
        "shares": trial.watch.shares,
    }


def _of_run(trial: Trial) -> dict[str, Any]:
    expected, endless = forecast(trial), trial.epochs == float("inf")
    budget = trial.budget
    found: dict[str, Any] = {
        "epochs": None if endless else trial.epochs,
        "steps": None if endless else trial.epochs * trial.steps_per_epoch,
        "seconds": None if endless else expected.total,
        "start_seconds": expected.start,
        "steps_seconds": None if endless else expected.steps,
        "epoch_ends_seconds": None if endless else expected.ends,
        "validations": None if endless else trial.validations,
        "validations_seconds": None if endless else expected.validations,
        "epoch_seconds": expected.epoch,
        "budget_seconds": budget,
        "epochs_in_budget": None,
    }
    if budget is not None:
        fit = max(0.0, budget - expected.start) / expected.epoch
        found["epochs_in_budget"] = fit if endless else min(fit, trial.epochs)
    return found


def _quick(words: list[str]) -> Trial:
    """Measure a few steps without validation, to compare."""
    bare = ["--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0"]
    return measure([*words, *bare], _FEW, _SHORT)


def _other(words: list[str], trial: Trial) -> dict[str, Any]:
    """Measure the other precision, beside this one once more: what ran before may have warmed the machine."""
    other = next(p for p in _PRECISIONS if p != trial.precision)
    theirs = _quick([*words, f"--trainer.precision={other}"]).step
    return {"precision": other, "step_ms": 1e3 * theirs, "saves": 1 - theirs / _quick(words).step}


def _points(axis: str, trial: Trial, twin: Twin) -> list[tuple[str, str]]:
    """Return the values to measure along an axis: how each is called, and the key that sets it."""
    if axis == "batch":
        sizes = [max(2, twin.batch_size // 2), *(twin.batch_size * n for n in (1, 2, 4))]
        return [(str(n), f"--data.init_args.batch_size={n}") for n in dict.fromkeys(sizes)]
    if axis == "precision":
        return [(p, f"--trainer.precision={p}") for p in _PRECISIONS]
    return [(v, f"--model.init_args.compile={v}") for v in ("false", "true")]


def _point(words: list[str], axis: str, value: str, key: str) -> dict[str, Any]:
    found: dict[str, Any] = {"axis": axis, "value": value}
    try:
        trial = _quick([*words, key])
    except torch.OutOfMemoryError:
        return found | {"refused": "it does not fit into the device's memory"}
    except Exception as error:
        return found | {"refused": sentence(error)}
    return found | {"step_ms": 1e3 * trial.step, "images_per_second": trial.rate}


# -------------------------------------------------------------------------------------------------------- what is said


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
    kind = "allocated at most" if "NVIDIA" in found["device"] else "more than before, at most (the process)"
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
    if other["saves"] > 0.03:
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
