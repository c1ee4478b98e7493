"""Measurements of `hjepa bench`, as plain values."""

import time
from typing import Any, NamedTuple

import torch

from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.tools.arguments import sentence
from hjepa_pl.tools.bench.forecast import forecast
from hjepa_pl.tools.bench.matrix_products import product_rate
from hjepa_pl.tools.bench.timed_run import BenchCLI, TimedRun, measure
from hjepa_pl.tools.dry_run import DryCLI, prepare, scratch_folder
from hjepa_pl.tools.step_cost import StepCounter, TableCount, count_table
from hjepa_pl.tools.step_memory import available_memory, by_count, by_trial
from hjepa_pl.types import ConfigError

AXES = ("batch", "precision", "compile")
_PARTS = 10
_FEW, _SHORT = 10, 20.0
_PRECISIONS = ("32-true", "bf16-mixed")


class BenchRequest(NamedTuple):
    """Arguments of a benchmark."""

    words: list[str]
    """The arguments of fit: config and keys."""
    steps: tuple[int, float]
    """Steps to measure, and the limit in seconds."""
    sweep: tuple[str, ...]
    """Axes along which other values are also measured."""
    imports: float = 0.0
    """Seconds of the imports."""
    quick: bool = False
    """Measure the step only: not its parts, the matrix products, the largest batch and the other precision."""


class CountedModel(NamedTuple):
    """Costs of a config, counted without computing."""

    counter: StepCounter
    views: Any
    batch_size: int
    table: TableCount
    prepared: float
    """Seconds to read the config and make its objects, the first time in the process."""


def count(words: list[str]) -> CountedModel:
    """Count the cost of a config's steps on fake tensors."""
    began = time.perf_counter()
    with scratch_folder() as scratch:
        cli: DryCLI = prepare(words, DryCLI, scratch)
    prepared = time.perf_counter() - began
    if not isinstance(cli.model, HJEPALightningModule) or cli.views is None:
        raise ConfigError(
            f"bench measures HJEPALightningModule with MultiDatasetDataModule, not {type(cli.model).__name__} with "
            f"{type(cli.datamodule).__name__}."
        )
    half, batch_size = str(cli.trainer.precision) != "32-true", cli.datamodule.batch_size
    counter = StepCounter(cli.model, cli.views, cli.trainer.strategy.root_device, half)
    return CountedModel(counter, cli.views, batch_size, count_table(counter, batch_size), prepared)


def bench(request: BenchRequest) -> dict[str, Any]:
    """Measure a config.

    Returns:
        The figures of the report; with `quick` without `ceiling`, `utilization`, `largest_batch`, `other_precision`.

    Raises:
        ConfigError: As fit, and as `measure`.
    """
    available = available_memory()
    counted = count(request.words)
    if request.quick:
        run = measure(request.words, *request.steps)
        found = {**_of_run(run, counted), "run": _forecast(run, request.imports + counted.prepared)}
        return found | {"sweep": _sweep(request, counted)}
    after: dict[str, Any] = {}

    def then(cli: BenchCLI) -> None:
        device, half = cli.trainer.strategy.root_device, str(cli.trainer.precision) != "32-true"
        rows = max(p.images * p.tokens for c in counted.table.counts for p in c.context) * counted.batch_size
        after["ceiling"] = product_rate(cli.model, rows, device, half)
        if device.type == "cuda":
            size = by_trial(cli.model, counted.views, device, half, counted.batch_size, counted.table.heaviest)
            after["largest"] = {"batch_size": size, "estimate": False}
        elif device.type == "cpu" and available is not None:
            size = by_count(counted.counter, counted.views, counted.batch_size, counted.table.heaviest, available)
            after["largest"] = {"batch_size": size, "estimate": True, "available_bytes": available}

    run = measure(request.words, *request.steps, parts=_PARTS, then=then)
    found = _of_run(run, counted)
    found["ceiling"] = {"flops_per_second": after["ceiling"][0], "product": after["ceiling"][1]}
    found["utilization"] = found["flops_per_second"] / after["ceiling"][0]
    found["largest_batch"] = after.get("largest")
    found["run"] = _forecast(run, request.imports + counted.prepared)
    found["other_precision"] = _other(request.words, run)
    found["sweep"] = _sweep(request, counted)
    return found


def _sweep(request: BenchRequest, counted: CountedModel) -> list[dict[str, Any]]:
    return [
        {"axis": axis, "value": value, **_try_config([*request.words, key])}
        for axis in request.sweep
        for value, key in _points(axis, counted)
    ]


def _of_run(run: TimedRun, counted: CountedModel) -> dict[str, Any]:
    times = sorted(run.watch.steps)
    accumulated = run.batch_size / counted.batch_size
    return {
        "device": run.device,
        "device_type": run.device_type,
        "threads": torch.get_num_threads(),
        "precision": run.precision,
        "batch_size": run.batch_size,
        "views_grow": run.grows,
        "steps_measured": len(times),
        "step_ms": 1e3 * run.step,
        "step_ms_range": [1e3 * times[len(times) // 20], 1e3 * times[-1 - len(times) // 20]],
        "images_per_second": run.rate,
        "tokens_per_second": run.rate * counted.table.tokens,
        "peak_bytes": run.peak,
        "flops_per_step": counted.table.flops * accumulated,
        "flops_per_second": counted.table.flops * accumulated / run.step,
        "shares": run.watch.shares,
    }


def _forecast(run: TimedRun, before: float) -> dict[str, Any]:
    expected, endless = forecast(run, before), run.epochs == float("inf")
    budget = run.budget
    found: dict[str, Any] = {
        "epochs": None if endless else run.epochs,
        "steps": None if endless else run.epochs * run.steps_per_epoch,
        "seconds": None if endless else expected.total,
        "start_seconds": expected.start,
        "steps_seconds": None if endless else expected.steps,
        "epoch_ends_seconds": None if endless else expected.ends,
        "validations": None if endless else run.validations,
        "validations_seconds": None if endless else expected.validations,
        "epoch_seconds": expected.epoch,
        "budget_seconds": budget,
        "epochs_in_budget": None,
    }
    if budget is not None:
        fit = max(0.0, budget - expected.start) / expected.epoch
        found["epochs_in_budget"] = fit if endless else min(fit, run.epochs)
    return found


def _quick(words: list[str]) -> TimedRun:
    """Measure a few steps without validation."""
    bare = ["--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0"]
    return measure([*words, *bare], _FEW, _SHORT)


def _other(words: list[str], run: TimedRun) -> dict[str, Any]:
    """Measure the other precision, and this one again: the machine may have slowed down since the first measurement."""
    other = next(p for p in _PRECISIONS if p != run.precision)
    found = {"precision": other, **_try_config([*words, f"--trainer.precision={other}"])}
    again = _try_config(words) if "step_ms" in found else {}
    if "step_ms" in again:
        found["saves"] = 1 - found["step_ms"] / again["step_ms"]
    return found


def _points(axis: str, counted: CountedModel) -> list[tuple[str, str]]:
    """Return the values to measure along an axis: label, and key with value."""
    if axis == "batch":
        sizes = [max(2, counted.batch_size // 2), *(counted.batch_size * n for n in (1, 2, 4))]
        return [(str(n), f"--data.init_args.batch_size={n}") for n in dict.fromkeys(sizes)]
    if axis == "precision":
        return [(p, f"--trainer.precision={p}") for p in _PRECISIONS]
    return [(v, f"--model.init_args.compile={v}") for v in ("false", "true")]


def _try_config(words: list[str]) -> dict[str, Any]:
    """Measure a few steps; an error is returned as text, so that earlier measurements are not lost."""
    try:
        run = _quick(words)
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    except Exception as error:
        return {"error": sentence(error)}
    return {"step_ms": 1e3 * run.step, "images_per_second": run.rate}
