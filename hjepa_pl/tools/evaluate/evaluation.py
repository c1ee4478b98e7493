"""A whole evaluation: networks, datasets, tasks, report."""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hjepa_pl.callbacks.provenance import git_hash, versions
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.evaluation.protocols import PROTOCOLS
from hjepa_pl.modules.finetune import FinetuneConfig
from hjepa_pl.tools.evaluate.config import EvalConfig, FinetuneRun
from hjepa_pl.tools.evaluate.extract import Pass, trim
from hjepa_pl.tools.evaluate.finetune import augmentation_of
from hjepa_pl.tools.evaluate.html.page import PAGE, write_html
from hjepa_pl.tools.evaluate.networks import Network, OwnEncoder
from hjepa_pl.tools.evaluate.report import REPORT, SCHEMA, kinds_table, result_table, write_report
from hjepa_pl.tools.evaluate.sets import LabeledSet, open_sets, sets_of_run
from hjepa_pl.tools.evaluate.subjects import open_networks
from hjepa_pl.tools.evaluate.suite import JudgedSet, Plan, judge, kinds_of
from hjepa_pl.utils.device import choose_device
from hjepa_pl.utils.settings import invalid, to_plain
from hjepa_pl.utils.sizes import sides


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Judge an encoder and its baselines, print the tables and write the report.

    Args:
        config: What and how.

    Returns:
        The content of report.json.

    Raises:
        ConfigError: If a file, dataset or device is not there, or a task cannot be done.
    """
    began = time.perf_counter()
    run = run_folder(config.ckpt)
    sets, seed = (config.sets, config.seed) if config.sets is not None else sets_of_run(run)
    out = output_folder(config, run)
    plan = _plan(config, run)
    networks = open_networks(config)
    if isinstance(networks[0], OwnEncoder) and "finetune" in plan.tasks:
        how = config.finetune or FinetuneRun()
        plan = plan._replace(finetune=(how, augmentation_of(how, networks[0].metadata)))
        FinetuneConfig(**(how.options or {}))  # raises for an option that it has not
    for network in networks:
        kinds_of(network, plan, subject=network is networks[0])  # raises for kinds that it has not
    bad = BadFiles()
    data = open_sets(sets, seed, bad)
    if plan.how.cache is not None:
        make_writable("eval.cache", plan.how.cache)
    make_writable("eval.out", out)
    judged = _judge_all(networks, data, plan, bad)
    report = _report(config, plan, networks[0], judged) | {
        "sets_seed": seed,
        "networks": [network.label for network in networks],
        "bad_files": bad.count,
        "seconds": round(time.perf_counter() - began, 2),
    }
    write_report(report, judged, out)
    write_html(report, judged, networks, plan.how, out)
    if plan.how.cache is not None and plan.how.cache.exists():
        trim(plan.how.cache)
    _print(report, out)
    return report


def _report(config: EvalConfig, plan: Plan, subject: Network, judged: Sequence[JudgedSet]) -> dict[str, Any]:
    """Return what report.json says of the settings, and of each dataset."""
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"hjepa eval {shlex.join(sys.argv[2:])}" if sys.argv[1:2] == ["eval"] else None,
        "commit": git_hash(),
        "versions": versions(),
        "device": str(plan.how.device),
        "precision": str(plan.how.precision).removeprefix("torch."),
        "seed": plan.seed,
        "protocol": {"name": config.protocol, **plan.protocol._asdict()},
        "model": _model(subject, config, plan),
        "sets": {found.data.name: found.result for found in judged},
        "finetune": None if plan.finetune is None else [to_plain(part) for part in plan.finetune],
    }


def run_folder(ckpt: str | None) -> Path | None:
    """Return the folder of the run that a checkpoint belongs to; None if it is not in one."""
    if ckpt is None:
        return None
    path = Path(ckpt).absolute()
    return next((folder for folder in (path, *path.parents[:2]) if (folder / "config.yaml").is_file()), None)


def output_folder(config: EvalConfig, run: Path | None) -> Path:
    """Return the folder of the report."""
    if config.out is not None:
        return Path(config.out).expanduser()
    if run is not None:
        return run / "eval"
    name = config.timm or Path(str(config.ckpt)).stem
    return Path("results") / f"eval-{name.replace('/', '-')}"


def _plan(config: EvalConfig, run: Path | None) -> Plan:
    device = choose_device("eval.device", config.device)
    default = Path("~/.cache/hjepa_pl").expanduser()
    cache = Path(config.cache or os.environ.get("HJEPA_CACHE") or default).expanduser()
    how = Pass(
        device,
        _precision(config, run, device),
        config.batch_size,
        None if config.cache == "none" else cache,
    )
    return Plan(config.chosen_tasks, PROTOCOLS.find(config.protocol), tuple(config.features or ()), config.seed, how)


def _precision(config: EvalConfig, run: Path | None, device: torch.device) -> torch.dtype:
    """Return the precision of the forward pass: by default as the probes of the run had it."""
    if config.precision != "auto":
        return torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    if run is not None:
        try:
            stored = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["trainer"]["precision"]
        except (yaml.YAMLError, OSError, KeyError, TypeError):
            stored = None
        return torch.bfloat16 if stored is not None and "16" in str(stored) else torch.float32
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def make_writable(key: str, folder: Path) -> None:
    """Make a folder, before anything takes time.

    Raises:
        ConfigError: If it cannot be written to; the message names `key`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise invalid(key, str(folder), f"cannot be written to ({error.strerror}); choose another folder.") from None


def _judge_all(networks: Sequence[Network], data: Sequence[LabeledSet], plan: Plan, bad: BadFiles) -> list[JudgedSet]:
    """Judge on each dataset, with a progress bar on stderr."""
    images = sum(len(d.train.rows) + len(d.test.rows) for d in data) * len(networks)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("images", total=images)
        return [judge(networks, d, plan, bad, lambda n: progress.advance(bar, n)) for d in data]


def _model(network: Network, config: EvalConfig, plan: Plan) -> dict[str, Any]:
    height, width = sides(network.spec.size)
    return {
        "label": network.label,
        "source": config.ckpt or config.timm,
        "weights": config.weights,
        "features": kinds_of(network, plan, subject=True)[0].name,
        "images": {
            "height": height, "width": width, "channels": network.spec.channels, "mean": list(network.spec.mean),
            "std": list(network.spec.std),
        },
        "identity": network.identity[-64:],
    }  # fmt: skip


def _print(report: dict[str, Any], out: Path) -> None:
    console, protocol = Console(), report["protocol"]
    for name, result in report["sets"].items():
        console.print(result_table(name, result, report["model"]["label"]))
        if result["features"]:
            console.print(kinds_table(result))
    console.print(
        f"Protocol {protocol['name']}: {report['model']['features']} features, {report['precision']}; ± is the 95 % "
        "interval over test images (few-shot: over draws).",
        highlight=False,
    )
    if protocol["departures"]:
        console.print(f"Departures from {protocol['name']}: {protocol['departures']}", highlight=False)
    console.print(f"Report: {out / REPORT} and {PAGE}", highlight=False)
