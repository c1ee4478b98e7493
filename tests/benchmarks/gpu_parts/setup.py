"""What the parts of the GPU benchmark share: where and how small they run, processes, runs of `hjepa fit`."""

import ctypes
import gc
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Not used here: what every run imports, a fork of this process has already.
import sklearn.datasets  # noqa: F401
import torch
import torch.utils.tensorboard

import hjepa_pl.cli.main  # noqa: F401

CONFIGS = Path(__file__).parents[3] / "configs"
Figures = dict[str, Any] | str
"""Figures by name, or a sentence that says why there are none."""
Rows = Iterator[tuple[str, Figures]]
"""What a part yields: the name of a row, and its figures."""
NEEDS_CUDA = "needs CUDA"


class Setup(NamedTuple):
    """Where a part runs, and on what."""

    device: str
    """'cuda' or 'cpu'."""
    miniature: bool
    """Networks and data so small that all parts take under a minute on a CPU."""
    work: Path
    """Folder for the runs."""
    left: float
    """Seconds that the part may take."""
    cifar10: Path | None = None
    """Folder with train/ and test/."""
    tiny: Path | None = None
    """Folder of photographs with train/, a second training set."""
    reference: Path | None = None
    """A script that times the public I-JEPA code."""
    ijepa: Path | None = None
    """A checkout of that code."""

    @property
    def words(self) -> list[str]:
        """The words of `hjepa fit` for the device and the folder of the runs."""
        return [f"--trainer.accelerator={self.device}", "--trainer.devices=1", f"--results_dir={self.work}"]


class Part(NamedTuple):
    """A part of the benchmark."""

    name: str
    seconds: float
    """About what it takes on a GPU: it is begun if so much is left."""
    run: Callable[[Setup], Rows]


class RunFailed(Exception):
    """A process of the benchmark has failed."""


def sync(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def free(device: str) -> None:
    """Return the memory of what has been deleted."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def attempt(name: str, call: Callable[[], Figures]) -> tuple[str, Figures]:
    """Return a row; an error becomes its figure, so that the rows after it are measured."""
    try:
        return name, call()
    except torch.OutOfMemoryError:
        return name, "out of memory"
    except Exception as error:
        traceback.print_exc()
        return name, {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}


def die_with_parent() -> None:
    """Let the kernel kill this process when the one that started it ends (Linux's prctl)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def forked(call: Callable[[], None], log: Path, limit: float) -> str | None:
    """Run a function in a process of its own, and end what it has started.

    A fork has the imports of this process, which must not have used the GPU or trained. An error, a killed process and
    a broken GPU end with it.

    Args:
        call: The function.
        log: File to which what it prints is appended.
        limit: Seconds after which it is killed.

    Returns:
        None, or in one line why it failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    before = log.stat().st_size if log.exists() else 0
    process = multiprocessing.get_context("fork").Process(target=_child, args=(call, str(log)))
    process.start()
    process.join(max(limit, 0.1))
    late = process.is_alive()
    try:
        os.killpg(process.pid or 0, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.join()
    if late:
        return f"stopped after {limit:.0f} s"
    if process.exitcode == 0:
        return None
    lines = [x.strip() for x in log.read_bytes()[before:].decode(errors="replace").splitlines() if x.strip()]
    return lines[-1] if lines else f"status {process.exitcode}"


def _child(call: Callable[[], None], log: str) -> None:
    os.setsid()
    die_with_parent()
    gc.freeze()  # what has been imported needs no collection
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
    call()


def fit(words: list[str]) -> None:
    """Run `hjepa fit` in this process; raises `RunFailed`, the reason is in the log."""
    from hjepa_pl.__main__ import main

    sys.argv = ["hjepa"]
    status = main(["fit", *words, "--trainer.enable_progress_bar=false"])
    if status:
        sys.exit(status)  # the last line of the log is the error


def fit_apart(words: list[str], setup: Setup, name: str) -> Path:
    """Run `hjepa fit` in a process of its own; return the folder of the run."""
    words = [*words, *setup.words, f"--experiment_name={name}"]
    error = forked(lambda: fit(words), setup.work / f"{name}.txt", setup.left)
    if error is not None:
        raise RunFailed(error)
    return setup.work / name


def summary(run: Path) -> dict[str, Any]:
    """Return what a run has written of itself, as figures."""
    found = json.loads((run / "summary.json").read_text())
    figures = {key: found[key] for key in ("epochs", "steps")}
    figures |= {"images/s": found["images_per_second"], "seconds": found["seconds"]}
    return figures | {name: value for name, value in found["metrics"].items() if name.startswith("probe/")}


def folder_data(folder: Path) -> list[str]:
    """Return the keys that train and probe on a folder with train/ and test/."""
    return [
        f"--data.init_args.datasets=[{{name: folder, root: {folder}/train}}]",
        f"--data.init_args.probe=[{{name: folder, root: {folder}}}]",
    ]


def seconds_of(call: Callable[[], None], device: str, least: int, seconds: float) -> list[float]:
    """Call a function at least so often, and for so long; return the seconds of each call."""
    found: list[float] = []
    while len(found) < least or sum(found) < seconds:
        began = time.perf_counter()
        call()
        sync(device)
        found.append(time.perf_counter() - began)
    return found
