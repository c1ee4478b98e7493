"""A timed run of `hjepa fit` that ends after some steps."""

import contextlib
import io
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from hjepa_pl.callbacks.provenance import device_name
from hjepa_pl.tools.bench.stopwatch import Stopwatch
from hjepa_pl.tools.dry_run import ToolCLI, prepare, scratch_folder
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.run_length import steps_per_epoch
from hjepa_pl.utils.settings import invalid

WARMUP = 3


class TimedRun(NamedTuple):
    """Measurements of a timed run."""

    device: str
    device_type: str
    """'cpu', 'cuda' or 'mps'."""
    precision: str
    batch_size: int
    """Images of an optimizer step, with gradient accumulation."""
    watch: Stopwatch
    peak: int
    """Peak bytes allocated on a CUDA device; on others the growth of the process's peak memory."""
    epochs: float
    """Of the whole run; infinite if only the time budget ends it."""
    steps_per_epoch: int
    validations: float
    """Of the whole run, without the one before training."""
    budget: float | None
    """Seconds."""
    grows: bool = False
    """Whether the run's views grow; they are measured at their last size."""

    @property
    def step(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.watch.steps)

    @property
    def rate(self) -> float:
        """Images per second at the median."""
        return self.batch_size / self.step


class BenchCLI(ToolCLI):
    """Makes the objects of `hjepa fit`, with a stopwatch among the callbacks.

    Args:
        watch: The stopwatch.
    """

    def __init__(self, *args: Any, watch: Stopwatch, **kwargs: Any) -> None:
        self.watch = watch
        super().__init__(*args, **kwargs)

    def _callbacks(self, config: dict[str, Any], options: Any) -> list[Any]:
        config["enable_progress_bar"] = config["enable_model_summary"] = False
        return [*super()._callbacks(config, options), self.watch]


def measure(
    words: Sequence[str],
    steps: int,
    seconds: float,
    *,
    parts: int = 0,
    then: Callable[[BenchCLI], None] = lambda cli: None,
) -> TimedRun:
    """Run a config for some steps, and measure them.

    Args:
        words: The arguments of fit.
        steps: Steps to measure, after a warm-up.
        seconds: Limit of the measurement, after at least five steps.
        parts: Further steps in which the parts of a step are timed.
        then: Called with the run's objects at the end, before they are deleted.

    Raises:
        ConfigError: As fit; if the run is resumed, has several processes, or is a fast_dev_run.
    """
    watch = Stopwatch(WARMUP, steps, seconds, parts)
    with scratch_folder() as scratch, contextlib.redirect_stdout(io.StringIO()):
        before = _peak_memory()
        cli: BenchCLI = prepare(words, BenchCLI, scratch, watch=watch)
        _check(cli)
        grows = getattr(cli.datamodule, "resolution", None) is not None
        if grows:
            cli.datamodule.resolution = None  # all views have their last size
        device = cli.trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        cli.fit(cli.model, datamodule=cli.datamodule)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_memory() - before
        run = _read(cli, watch, peak, grows)
        then(cli)
    return run


def _check(cli: BenchCLI) -> None:
    if cli.config["fit"]["ckpt_path"] is not None:
        raise invalid(
            "ckpt_path",
            cli.config["fit"]["ckpt_path"],
            "has no effect with bench, which measures a run from its start; remove it.",
        )
    if cli.trainer.world_size > 1:
        raise invalid(
            "trainer.devices",
            cli.config["fit"]["trainer"]["devices"],
            f"must be one process for bench, not {cli.trainer.world_size}; use --trainer.devices=1.",
        )
    if cli.config["fit"]["trainer"]["fast_dev_run"]:
        raise invalid(
            "trainer.fast_dev_run",
            cli.config["fit"]["trainer"]["fast_dev_run"],
            "skips parts of a run, so bench cannot measure it; remove it.",
        )


def _peak_memory() -> int:
    """Return the peak memory of the process in bytes; 0 if the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _read(cli: BenchCLI, watch: Stopwatch, peak: int, grows: bool) -> TimedRun:
    trainer = cli.trainer
    if not watch.steps:
        raise ConfigError(
            f"the run has {trainer.global_step} steps, {WARMUP} of which are warm-up; bench needs more: increase "
            "trainer.max_epochs or data.epoch_size."
        )
    per_epoch = int(steps_per_epoch(trainer))
    epochs = cli.model.progress.total_steps / per_epoch
    return TimedRun(
        device_name(trainer),
        trainer.strategy.root_device.type,
        str(trainer.precision),
        watch.images * trainer.accumulate_grad_batches,
        watch,
        peak,
        epochs,
        per_epoch,
        _validations(cli, epochs),
        cli.model.budget,
        grows,
    )


def _validations(cli: BenchCLI, epochs: float) -> float:
    """Return the number of validations of the whole run, by Lightning's rules, plus the one at its end."""
    trainer = cli.trainer
    if not any(trainer.num_val_batches):
        return 0
    if epochs == float("inf"):
        return epochs
    every = cli.config["fit"]["trainer"]["check_val_every_n_epoch"]  # `end_after_step` has set the Trainer's own to 1
    batches = int(trainer.num_training_batches)
    check = int(trainer.val_check_batch or batches)
    if every is None:
        return math.ceil(epochs * batches / check)
    at_end = epochs % every == 0 and batches % check == 0
    return epochs // every * (batches // check) + (not at_end)
