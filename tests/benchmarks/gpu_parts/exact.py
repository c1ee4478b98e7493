"""Whether runs on a GPU repeat, resume and agree with a CPU; what TF32 products change."""

import csv
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step import make_batch

from gpu_parts.setup import CONFIGS, NEEDS_CUDA, Figures, Rows, RunFailed, Setup, attempt, fit_apart, forked
from gpu_parts.vits import Steps, build, fitting
from hjepa_pl.types import Counters

STEPS = 20
WORDS = [
    "--config", str(CONFIGS / "quickstart.yaml"), "--trainer.max_epochs=-1", f"--trainer.max_steps={STEPS}",
    "--trainer.log_every_n_steps=1", "--data.init_args.probe=[]", "--checkpoint.last_every_n_steps=5",
    "--trainer.limit_val_batches=0", "--model.init_args.encoder.drop_path_rate=0.1",
]  # fmt: skip
"""Digits: data, views, masks, levels, projector and drop path of a real run in seconds."""
SMALLER = ["--data.init_args.batch_size=8", "--model.init_args.encoder.depth=2", "--model.init_args.predictor.depth=1"]


def runs(setup: Setup) -> Rows:
    """Run 20 steps again and again: equal seeds, killed and resumed, in bf16; compare masks with the CPU's."""
    # All processes are forked before this one computes, and only then are their results read.
    run: dict[str, Path | str] = {}
    words = [*WORDS, *SMALLER] if setup.miniature else WORDS
    wanted: dict[str, Callable[[], Path]] = {
        "first": lambda: fit_apart(words, setup, "first"),
        "second": lambda: fit_apart(words, setup, "second"),
        "resumed": lambda: resumed(setup, words, "resumed"),
        "bf16": lambda: fit_apart([*words, "--trainer.precision=bf16-mixed"], setup, "bf16"),
    }
    if setup.device == "cuda":
        exactly = [*words, "--trainer.deterministic=true"]
        wanted["deterministic"] = lambda: fit_apart(exactly, setup, "deterministic")
        wanted["deterministic again"] = lambda: fit_apart(exactly, setup, "deterministic-again")
        wanted["deterministic, resumed"] = lambda: resumed(setup, exactly, "deterministic-resumed")
    for name, call in wanted.items():
        try:
            run[name] = call()
        except RunFailed as error:
            run[name] = str(error)
    pairs = {
        f"{STEPS} steps of equal seeds": ("first", "second"),
        "killed and resumed": ("first", "resumed"),
        "equal seeds, deterministic=true": ("deterministic", "deterministic again"),
        "killed and resumed, deterministic=true": ("deterministic", "deterministic, resumed"),
    }
    for name, (one, two) in pairs.items():
        if one in run:
            yield attempt(name, lambda one=one, two=two: difference(_path(run[one]), _path(run[two])))
        else:
            yield name, NEEDS_CUDA
    yield attempt("loss, bf16-mixed against 32-true", lambda: losses(_path(run["first"]), _path(run["bf16"])))
    yield attempt("masks against the CPU's", lambda: masks(setup))


def _path(found: Path | str) -> Path:
    if isinstance(found, str):
        raise RunFailed(found)
    return found


def resumed(setup: Setup, words: list[str], name: str) -> Path:
    """Kill a run after its fifth step, resume it and return its folder."""
    last = setup.work / name / "checkpoints" / "last.ckpt"

    def killed() -> None:
        process = os.getpid()
        if os.fork() == 0:  # the one that watches
            while not (last.exists() and _step(last) >= 5):
                time.sleep(0.02)
                if os.getppid() != process:
                    os._exit(0)
            os.kill(process, signal.SIGKILL)
            os._exit(0)
        from hjepa_pl.__main__ import main

        main(["fit", *words, *setup.words, f"--experiment_name={name}", "--trainer.enable_progress_bar=false"])

    forked(killed, setup.work / f"{name}-killed.txt", setup.left)
    if not last.exists():
        raise RunFailed("the run to be killed wrote no checkpoint")
    if (step := _step(last)) >= STEPS:
        raise RunFailed(f"the run was over, at step {step}, before it was killed")
    return fit_apart([*words, "--ckpt_path=last"], setup, name)


def _step(path: Path) -> int:
    return int(torch.load(path, weights_only=True, map_location="cpu")["global_step"])


def difference(one: Path, two: Path) -> Figures:
    """Compare the weights of two runs."""
    a, b = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]
        for run in (one, two)
    )
    largest = max(float((a[n].double() - b[n].double()).abs().max()) for n in a)
    different = sum(not torch.equal(a[n], b[n]) for n in a)
    return {"bit-equal": different == 0, "tensors that differ": f"{different} of {len(a)}", "largest": largest}


def losses(one: Path, two: Path) -> Figures:
    """Compare the losses of two runs, step by step."""
    a, b = (_losses(run) for run in (one, two))
    apart = [abs(x - y) / abs(x) for x, y in zip(a, b, strict=True)]
    return {"steps": len(a), "first, relative": apart[0], "largest, relative": max(apart), "last": a[-1], "bf16": b[-1]}


def _losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def masks(setup: Setup) -> Figures:
    """Draw masks on the device and on the CPU, for several steps."""
    module = build(setup, "small")
    assert module.masks is not None
    equal = 0
    for step in range(STEPS):
        drawn = []
        for device in (setup.device, "cpu"):
            counters = Counters(0, step, torch.arange(64, device=device))
            drawn.append([t.cpu() for t in _tensors(module.masks(counters))])
        equal += len(drawn[0]) > 0 and all(torch.equal(x, y) for x, y in zip(*drawn, strict=True))
    return {"equal": f"{equal} of {STEPS} steps", "tensors": len(drawn[0])}


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []


def float32(setup: Setup) -> Rows:
    """Measure `set_float32_matmul_precision`, high against highest, in 32-true: step and loss."""
    images = fitting(setup, "small", 256)
    images = images if setup.miniature else images // 2  # which was found in 16 bits
    found: dict[str, tuple[dict[str, Any], list[float]]] = {}
    for kind in ("highest", "high"):
        torch.set_float32_matmul_precision(kind)
        steps = Steps(setup, build(setup, "small"), images, 2, half=False)
        first = _loss(steps)
        for _ in range(2 if setup.miniature else 20):
            steps.step()
        found[kind] = (steps.measure(), [first, _loss(steps)])
        del steps
        figures, (before, after) = found[kind]
        yield f"{kind}, batch {images}", figures | {"loss": before, "later": after}
    torch.set_float32_matmul_precision("highest")
    (slow, exact), (fast, near) = found["highest"], found["high"]
    apart = [abs(x - y) / abs(x) for x, y in zip(exact, near, strict=True)]
    yield "high against highest", {"speed": slow["ms"] / fast["ms"], "loss, relative": apart[0], "later": apart[1]}


def _loss(steps: Steps) -> float:
    with torch.no_grad():
        return float(steps.module.compute(make_batch(steps.images, 0, steps.views))[0])
