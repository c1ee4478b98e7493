"""Whole runs: ViT-Ti/4 with its input pipeline, CIFAR-10 in ten minutes, overnight.yaml, several GPUs."""

import json
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from launches import augmentation, step
from step import make_batch, timed_step

from gpu_parts.setup import (
    CONFIGS,
    NEEDS_CUDA,
    Figures,
    Rows,
    Setup,
    attempt,
    die_with_parent,
    fit,
    folder_data,
    summary,
)
from hjepa_pl import HJEPALightningModule
from hjepa_pl.tools.bench.forecast import forecast
from hjepa_pl.tools.bench.timed_run import measure

MINIATURE = [
    "--model.init_args.encoder={embed_dim: 48, depth: 2, num_heads: 3, patch_size: 4, img_size: 32, size: null}",
    "--model.init_args.projector={hidden_dim: 32, out_dim: 16}", "--data.init_args.batch_size=4",
    "--data.init_args.epoch_size=16", "--data.init_args.num_workers=0", "--model.init_args.optimizer.warmup_epochs=0",
    "--trainer.precision=32-true",
]  # fmt: skip
FAKE = ["--data.init_args.datasets=[{name: fake}]", "--data.init_args.probe=[]"]


@contextmanager
def utilization(device: str) -> Iterator[list[float]]:
    """Collect the GPU's utilization in percent, as nvidia-smi samples it."""
    found: list[float] = []
    if device != "cuda":
        yield found
        return
    command = ["nvidia-smi", "--id=0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)

    def read() -> None:
        assert process.stdout is not None
        found.extend(float(line) for line in process.stdout if line.strip().isdigit())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield found
    finally:
        process.terminate()
        reader.join(5)


def tiny(setup: Setup) -> Rows:
    """Measure ViT-Ti/4 at 32 pixels as cifar10.yaml trains it: launches, images/s with the input pipeline, GPU."""
    data = FAKE if setup.cifar10 is None else folder_data(setup.cifar10)[:1] + FAKE[1:]
    words = ["--config", str(CONFIGS / "cifar10.yaml"), *data, *setup.words]
    words += MINIATURE if setup.miniature else ["--data.init_args.epoch_size=50000"]

    def run(*more: str) -> Figures:
        with utilization(setup.device) as used:
            found = measure([*words, *more], *((2, 0.0) if setup.miniature else (400, 8.0)), parts=2)
        figures: dict[str, Any] = {"images/s": found.rate, "ms": 1e3 * found.step, "batch": found.batch_size}
        if used:
            figures["GPU utilization %"] = statistics.median(used)
        return figures | {f"{part} %": 100 * share for part, share in found.watch.shares.items()}

    three = [
        "--model.init_args.levels=three",
        "--model.init_args.regularizers=[{kind: sigreg}]",
        "--model.init_args.predictor={embed_dim: 192, depth: 4, num_heads: 3}",
    ]
    compiled = "--model.init_args.compile=true"
    yield attempt("image level alone", run)
    yield attempt("three", lambda: run(*three))
    if setup.device == "cuda":
        yield attempt("image level alone, compiled", lambda: run(compiled))
        yield attempt("three, compiled", lambda: run(*three, compiled))
    for levels in ("three",) if setup.miniature else ("three", "flat"):
        yield attempt(f"launches a step, {levels}", lambda levels=levels: _launches(levels, setup.miniature))
    yield attempt("kernels a step, three", lambda: _kernels() if setup.device == "cuda" else NEEDS_CUDA)


def _module(levels: str, depth: int = 12) -> HJEPALightningModule:
    encoder = {"size": "tiny", "patch_size": 4, "img_size": 32, "depth": depth}
    return HJEPALightningModule(encoder=encoder, levels=levels)


def _launches(levels: str, small: bool) -> Figures:
    """Count what the dispatcher is given on a CPU, as `launches.py` does."""
    parts = {"augmentation": augmentation(), **step(_module(levels, 2 if small else 12))}
    return {name: counted.total() for name, counted in parts.items()} | {
        "together": sum(counted.total() for counted in parts.values())
    }


def _kernels(steps: int = 10) -> Figures:
    """Count the GPU's kernels in steps of 256 images, and the share of the time in which one runs."""
    module = _module("three").train().cuda()
    optimizer, images = module.configure_optimizers(), torch.randn(256, 3, 32, 32, device="cuda")
    for _ in range(5):
        timed_step(module, optimizer, make_batch(images, 0, 2), True)
    plain = statistics.median(timed_step(module, optimizer, make_batch(images, 0, 2), True) for _ in range(20))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            timed_step(module, optimizer, make_batch(images, 0, 2), True)
    kernels = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(e.time_range.elapsed_us() for e in kernels) / steps / 1e6
    return {"kernels": len(kernels) / steps, "ms": 1e3 * plain, "of them busy ms": 1e3 * busy, "busy": busy / plain}


def cifar10(setup: Setup) -> Rows:
    """Run `hjepa fit` with cifar10.yaml for eight minutes, or what is left."""
    if setup.cifar10 is None:
        yield "", "needs --cifar10 FOLDER"
        return
    budget = max(1, int(min(480, setup.left - 20)))
    words = ["--config", str(CONFIGS / "cifar10.yaml"), *folder_data(setup.cifar10), *setup.words]
    words += [f"--time_budget=00:{budget // 60:02d}:{budget % 60:02d}", "--experiment_name=cifar10"]
    if setup.miniature:
        words += [*MINIATURE, "--trainer.max_steps=4", "--trainer.check_val_every_n_epoch=1"]
    fit(words)
    yield f"cifar10.yaml, budget {budget} s", summary(setup.work / "cifar10")


def overnight(setup: Setup) -> Rows:
    """Measure overnight.yaml with the keys that it names for an NVIDIA card, and predict its 45 epochs."""
    words = ["--config", str(CONFIGS / "overnight.yaml"), *setup.words]
    words += [
        "--data.init_args.batch_size=256", "--model.init_args.optimizer.lr=5e-4",
        "--model.init_args.encoder.grad_checkpointing=false",
    ]  # fmt: skip
    official = all(Path("data", name).is_dir() for name in ("stl10_binary", "cifar-10-batches-py", "cifar-100-python"))
    folders = [folder for folder in (setup.cifar10, setup.tiny) if folder is not None]
    data = "STL-10, CIFAR-100, CIFAR-10" if official else ", ".join(f.name for f in folders) or "fake images"
    if not official and not folders:
        words += FAKE
    elif not official:
        sets = ", ".join(f"{{name: folder, root: {folder}/train}}" for folder in folders)
        words += [f"--data.init_args.datasets=[{sets}]"]
        words += folder_data(setup.cifar10)[1:] if setup.cifar10 is not None else FAKE[1:]
    if setup.miniature:
        words += [*MINIATURE, "--model.init_args.predictor={embed_dim: 24, depth: 1, num_heads: 2}"]
    # The share of the run's ten minutes that fits: validations before and after it take the rest.
    steps, seconds = (2, 0.0) if setup.miniature else (1500, max(20.0, min(90.0, setup.left - 120)))
    run = measure(words, steps, seconds, parts=0 if setup.miniature else 10)
    expected = forecast(run)
    figures = {"images/s": run.rate, "ms": 1e3 * run.step, "batch": run.batch_size, "steps": len(run.watch.steps)}
    if setup.device == "cuda":
        figures["peak GiB"] = run.peak / 2**30
    figures |= {f"{part} %": 100 * share for part, share in run.watch.shares.items()}
    yield f"on {data}", figures
    yield "projected", {
        "epochs": run.epochs, "minutes": expected.total / 60, "steps min": expected.steps / 60,
        "validations min": expected.validations / 60,
    }  # fmt: skip


def ddp(setup: Setup) -> Rows:
    """Run the same images a GPU on one and on all GPUs."""
    count = torch.cuda.device_count() if setup.device == "cuda" else 1
    if count < 2:
        yield "", f"needs two GPUs; there {'is one' if setup.device == 'cuda' else 'are none'}"
        return
    rates: dict[int, float] = {}

    def run(devices: int) -> Figures:
        name = f"ddp{devices}"
        words = ["--config", str(CONFIGS / "cifar10.yaml"), *FAKE, "--data.init_args.epoch_size=200000"]
        words += [f"--trainer.devices={devices}", "--trainer.accelerator=cuda", "--trainer.max_steps=300"]
        command = [sys.executable, "-m", "hjepa_pl", "fit", *words, f"--results_dir={setup.work}"]
        command += [f"--experiment_name={name}", "--model.init_args.optimizer.warmup_epochs=0"]
        subprocess.run(command, check=True, preexec_fn=die_with_parent)
        found = json.loads((setup.work / name / "summary.json").read_text())
        rates[devices] = found["images_per_second"]
        figures: dict[str, Any] = {"images/s": rates[devices], "processes": found["world_size"]}
        return figures | ({"of one": rates[devices] / rates[1]} if devices > 1 and 1 in rates else {})

    for devices in (1, count):
        yield attempt(f"{devices} GPU{'s' if devices > 1 else ''}, ViT-Ti/4, batch 256", lambda n=devices: run(n))
