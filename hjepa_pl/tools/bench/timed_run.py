"""A run of `hjepa fit` that is timed and ends after some steps: what a step and the whole run take on this machine."""

import contextlib
import io
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from hjepa_pl.callbacks.provenance import device_name
from hjepa_pl.tools.bench.step_parts import now
from hjepa_pl.tools.bench.stopwatch import Stopwatch
from hjepa_pl.tools.dry_run import ToolCLI, prepare, scratch_folder
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.run_length import steps_per_epoch

WARMUP = 3


class Trial(NamedTuple):
    """What a timed run showed."""

    device: str
    device_type: str
    """'cpu', 'cuda' or 'mps'."""
    precision: str
    batch_size: int
    """Images of an optimizer step, accumulated ones included."""
    watch: Stopwatch
    peak: int
    """Bytes: most allocated on a CUDA device; elsewhere how far the process grew beyond what it was."""
    epochs: float
    """Of the whole run, infinite if only the clock ends it."""
    steps_per_epoch: int
    validations: float
    """Of the whole run, the one before training left out."""
    budget: float | None
    """Seconds."""

    @property
    def step(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.watch.steps)

    @property
    def rate(self) -> float:
        """Images a second at the median."""
        return self.batch_size / self.step


class Forecast(NamedTuple):
    """Seconds of the configured run on this machine, were there no time budget."""

    start: float
    """Before the first step, with the validation of the untrained network, and what the first steps take longer."""
    epoch: float
    """Of an epoch: steps, end and start, its share of the validations."""
    steps: float
    """Of all steps."""
    ends: float
    """Of all ends and starts of epochs."""
    validations: float

    @property
    def total(self) -> float:
        """Sum of the parts; infinite where only the clock ends the run."""
        return self.start + self.steps + self.ends + self.validations


class BenchCLI(ToolCLI):
    """Makes what `hjepa fit` makes, with a stopwatch among the callbacks."""

    watch: ClassVar[Stopwatch]

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
) -> Trial:
    """Run a config for some steps, and return what that showed.

    Args:
        words: As for fit.
        steps: Steps to measure, after a warm-up.
        seconds: Fewer than `steps` are measured after so many.
        parts: Steps of the pass that times the parts.
        then: What else is done with the run's objects, before they are given up.

    Raises:
        ConfigError: As fit refuses; and for what would not be one process from its first step.
    """
    BenchCLI.watch = watch = Stopwatch(WARMUP, steps, seconds, parts)
    with scratch_folder() as scratch, contextlib.redirect_stdout(io.StringIO()):
        before = _grown()
        cli: BenchCLI = prepare(words, BenchCLI, scratch)
        _refuse(cli)
        device = cli.trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        cli.fit(cli.model, datamodule=cli.datamodule)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _grown() - before
        trial = _read(cli, watch, peak)
        then(cli)
    return trial


def _refuse(cli: BenchCLI) -> None:
    if cli.config["fit"]["ckpt_path"] is not None:
        raise ConfigError("ckpt_path does nothing here: bench measures a run from its start; leave it out.")
    if cli.trainer.world_size > 1:
        raise ConfigError(
            f"trainer.devices {cli.config['fit']['trainer']['devices']} makes {cli.trainer.world_size} processes, and "
            "bench measures one; give --trainer.devices=1."
        )
    if cli.config["fit"]["trainer"]["fast_dev_run"]:
        raise ConfigError("trainer.fast_dev_run leaves out what a run has, so there is nothing to measure; remove it.")


def _grown() -> int:
    """Return the most bytes that the process has had in memory; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _read(cli: BenchCLI, watch: Stopwatch, peak: int) -> Trial:
    trainer = cli.trainer
    if not watch.steps:
        raise ConfigError(
            f"the run ends after {trainer.global_step} steps, of which {WARMUP} warm it up; give it more, by "
            "trainer.max_epochs or data.init_args.epoch_size."
        )
    per_epoch = int(steps_per_epoch(trainer))
    epochs = cli.model.progress.total_steps / per_epoch
    return Trial(
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
    )


def _validations(cli: BenchCLI, epochs: float) -> float:
    """Return how often the whole run validates, as Lightning counts its batches; at its end it does in any case."""
    trainer = cli.trainer
    if not any(trainer.num_val_batches):
        return 0
    if epochs == float("inf"):
        return epochs
    every = cli.config["fit"]["trainer"]["check_val_every_n_epoch"]  # the Trainer's own is 1 by now
    batches = int(trainer.num_training_batches)
    check = int(trainer.val_check_batch or batches)
    if every is None:
        return math.ceil(epochs * batches / check)
    at_end = epochs % every == 0 and batches % check == 0
    return epochs // every * (batches // check) + (not at_end)


def forecast(trial: Trial, before: float = 0.0) -> Forecast:
    """Return what the whole run would take, from the command; `before` are the seconds until the Trainer sets it up.

    Steps count at their mean without the quickest and the slowest tenth: masks of several sizes make it another figure
    than the median, and what disturbed a few of them should not be laid to all.
    """
    watch = trial.watch
    times, cut = sorted(watch.steps), len(watch.steps) // 10
    mean = statistics.fmean(times[cut : len(times) - cut])
    slow = max(0.0, sum(watch.warm) - mean * len(watch.warm))
    end = 0.0 if trial.steps_per_epoch == 1 else watch.finished  # as good as any where no epoch has ended
    if watch.epochs:
        end = max(0.0, statistics.fmean(watch.epochs) - mean)
    validation = statistics.fmean(watch.validations) if watch.validations else 0.0
    steps = trial.epochs * trial.steps_per_epoch
    shared = validation * trial.validations / trial.epochs if trial.epochs < float("inf") else 0.0
    epoch = trial.steps_per_epoch * mean + end + shared
    checks = validation * trial.validations if validation else 0.0
    return Forecast(before + watch.started + slow, epoch, steps * mean, trial.epochs * end, checks)


def ceiling(module: Any, rows: int, device: torch.device, half: bool) -> tuple[float, str]:
    """Measure matrix products: the faster of the encoder's MLP and of large squares.

    Args:
        module: With a `context_encoder`.
        rows: Tokens of a batch that one pass computes on.
        device: Where.
        half: In bfloat16 rather than float32.

    Returns:
        Operations a second, the median of nine, and the shapes.
    """
    layers = [m for m in module.context_encoder.vit.blocks[0].mlp.modules() if isinstance(m, nn.Linear)]
    kind, side = torch.bfloat16 if half else torch.float32, 8192 if device.type == "cuda" else 2048
    shapes = [(rows, layers[0].in_features, layers[0].out_features), (side, side, side)]
    rates = [statistics.median(_product_rate(shape, device, kind) for _ in range(9)) for shape in shapes]
    m, k, n = shapes[rates.index(max(rates))]
    return max(rates), f"{m:,} x {k:,} by {k:,} x {n:,} and back, {str(kind).removeprefix('torch.')}"


def _product_rate(shape: tuple[int, int, int], device: torch.device, kind: torch.dtype) -> float:
    """Repeat a product and its way back for a twentieth of a second: a clock has its grain, and a launch its price."""
    m, k, n = shape
    x, up, down = (torch.randn(sides, device=device, dtype=kind) for sides in ((m, k), (k, n), (n, k)))
    many = 4 if device.type == "cuda" else 1  # to look at the clock is to wait for the device
    (x @ up) @ down
    done, began = 0, now(device)
    while done == 0 or now(device) - began < 0.05:
        for _ in range(many):
            (x @ up) @ down
        done += many
    return done * 4 * m * k * n / (now(device) - began)
