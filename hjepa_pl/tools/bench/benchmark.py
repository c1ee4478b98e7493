"""What `hjepa bench` finds out about a config, as plain values."""

import time
from typing import Any, NamedTuple

import torch

from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.tools.arguments import sentence
from hjepa_pl.tools.bench.timed_run import BenchCLI, Trial, ceiling, forecast, measure
from hjepa_pl.tools.dry_run import DryCLI, prepare, scratch_folder
from hjepa_pl.tools.step_cost import StepCounter, TableCount, count_table
from hjepa_pl.tools.step_memory import available_memory, by_count, by_trial
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
    imports: float = 0.0
    """Seconds that a command takes to import what it needs."""


class Twin(NamedTuple):
    """What is counted of a config without computing."""

    counter: StepCounter
    views: Any
    batch_size: int
    table: TableCount
    prepared: float
    """Seconds that it took to read the config and make its objects, the first time in the process."""


def count(words: list[str]) -> Twin:
    """Count a config's steps on networks without storage."""
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
    return Twin(counter, cli.views, batch_size, count_table(counter, batch_size), prepared)


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
        rows = max(p.images * p.tokens for c in twin.table.counts for p in c.context) * twin.batch_size
        after["ceiling"] = ceiling(cli.model, rows, device, half)
        if device.type == "cuda":
            size = by_trial(cli.model, twin.views, device, half, twin.batch_size, twin.table.heaviest)
            after["largest"] = {"batch_size": size, "estimate": False}
        elif device.type == "cpu" and available is not None:
            size = by_count(twin.counter, twin.views, twin.batch_size, twin.table.heaviest, available)
            after["largest"] = {"batch_size": size, "estimate": True, "available_bytes": available}

    trial = measure(asked.words, *asked.steps, parts=_PARTS, then=then)
    found = _of_trial(trial, twin)
    found["ceiling"] = {"flops_per_second": after["ceiling"][0], "product": after["ceiling"][1]}
    found["utilisation"] = found["flops_per_second"] / after["ceiling"][0]
    found["largest_batch"] = after.get("largest")
    found["run"] = _of_run(trial, asked.imports + twin.prepared)
    found["other_precision"] = _other(asked.words, trial)
    found["sweep"] = [
        {"axis": axis, "value": value, **_tried([*asked.words, key])}
        for axis in asked.sweep
        for value, key in _points(axis, twin)
    ]
    return found


def _of_trial(trial: Trial, twin: Twin) -> dict[str, Any]:
    times = sorted(trial.watch.steps)
    accumulated = trial.batch_size / twin.batch_size
    return {
        "device": trial.device,
        "device_type": trial.device_type,
        "threads": torch.get_num_threads(),
        "precision": trial.precision,
        "batch_size": trial.batch_size,
        "steps_measured": len(times),
        "step_ms": 1e3 * trial.step,
        "step_ms_range": [1e3 * times[len(times) // 20], 1e3 * times[-1 - len(times) // 20]],
        "images_per_second": trial.rate,
        "tokens_per_second": trial.rate * twin.table.tokens,
        "peak_bytes": trial.peak,
        "flops_per_step": twin.table.flops * accumulated,
        "flops_per_second": twin.table.flops * accumulated / trial.step,
        "shares": trial.watch.shares,
    }


def _of_run(trial: Trial, before: float) -> dict[str, Any]:
    expected, endless = forecast(trial, before), trial.epochs == float("inf")
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
    found = {"precision": other, **_tried([*words, f"--trainer.precision={other}"])}
    again = _tried(words) if "step_ms" in found else {}
    if "step_ms" in again:
        found["saves"] = 1 - found["step_ms"] / again["step_ms"]
    return found


def _points(axis: str, twin: Twin) -> list[tuple[str, str]]:
    """Return the values to measure along an axis: how each is called, and the key that sets it."""
    if axis == "batch":
        sizes = [max(2, twin.batch_size // 2), *(twin.batch_size * n for n in (1, 2, 4))]
        return [(str(n), f"--data.init_args.batch_size={n}") for n in dict.fromkeys(sizes)]
    if axis == "precision":
        return [(p, f"--trainer.precision={p}") for p in _PRECISIONS]
    return [(v, f"--model.init_args.compile={v}") for v in ("false", "true")]


def _tried(words: list[str]) -> dict[str, Any]:
    """Return what a few steps take, or the sentence that refuses them: what was measured before shall not be lost."""
    try:
        trial = _quick(words)
    except torch.OutOfMemoryError:
        return {"refused": "it does not fit into the device's memory"}
    except Exception as error:
        return {"refused": sentence(error)}
    return {"step_ms": 1e3 * trial.step, "images_per_second": trial.rate}
