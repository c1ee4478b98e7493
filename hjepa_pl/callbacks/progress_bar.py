"""The progress bar: where the run stands, how fast it goes and what each loss does."""

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomBarColumn
from rich.console import Console
from rich.progress import ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from hjepa_pl.callbacks.throughput import Pace, images_in, is_logging_step
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.run_length import clock, steps_per_epoch

_NOT_SHOWN = ("/lr", "/weight_decay", "/momentum", "/grad_norm", "_weighted")
"""In the log and the CSV, but no reason to look at the bar."""


class ProgressBar(RichProgressBar):
    """Lightning's rich bar with images a second, the time left of the whole run, and each loss term by name.

    The figures are read on logging steps only, where the module has computed them anyway: no step waits for the device
    because of the bar. Where standard output is no terminal (a file, a pipe, a batch job) there is no bar and no
    control code: one plain line is printed an epoch.

    Args:
        refresh_rate: Most redraws a second.
        leave: Leave the bar of each finished epoch on the screen.
    """

    def __init__(self, refresh_rate: int = 4, leave: bool = True) -> None:
        if refresh_rate < 1:
            raise ConfigError(
                f"invalid `refresh_rate={refresh_rate}`: must be >= 1; no bar is enable_progress_bar: false."
            )
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self._pace = Pace()
        self._first_step = 0
        self._plain = False
        self._facts = _Facts()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose between bar and plain lines."""
        super().setup(trainer, pl_module, stage)
        console = Console()
        self._plain = not (console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal))
        if self._plain:
            self.disable()

    def configure_columns(self, trainer: pl.Trainer) -> list:
        """Return the columns, narrow enough for 100 characters with a few loss terms."""
        style = self.theme.progress_bar
        bar = CustomBarColumn(
            complete_style=style, finished_style=self.theme.progress_bar_finished, pulse_style=style, bar_width=16
        )
        return [TextColumn("{task.description}"), bar, TextColumn("{task.completed:.0f}/{task.total:.0f}"), self._facts]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._pace, self._first_step = Pace(), trainer.global_step
        self._pace.resume()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; read the figures on logging steps."""
        self._pace.count(images_in(batch) * trainer.world_size)
        if self.train_progress_bar_id is None and self.is_enabled:
            self._initialize_train_progress_bar_id()  # a resume in mid-epoch: there was no epoch start
        self._update(self.train_progress_bar_id, batch_idx + 1)
        if self.is_enabled and is_logging_step(trainer, batch_idx):
            self._facts.text = self._describe(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the figures of the epoch; as a plain line where there is no bar."""
        if not trainer.is_global_zero:
            return
        if self._plain or not self._facts.text:
            self._facts.text = self._describe(trainer)
        if self._plain:
            print(f"epoch {self._place(trainer.current_epoch)}  {self._facts.text}", flush=True)
        self.refresh()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the training clock."""
        super().on_validation_start(trainer, pl_module)
        self._pace.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the training clock run again."""
        self.reset_dataloader_idx_tracker()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._pace.resume()

    def _get_train_description(self, current_epoch: int) -> str:
        text = f"Epoch {self._place(current_epoch)}"
        return f"{text:{len(self.validation_description)}}"

    def _place(self, epoch: int) -> str:
        """Return "3/45" for the third of 45 epochs; without their number where the clock ends the run sooner."""
        steps, each = self._pace.end(self.trainer, self._first_step).steps, steps_per_epoch(self.trainer)
        return f"{epoch + 1}" if steps is None or math.isinf(each) else f"{epoch + 1}/{math.ceil(steps / each)}"

    def _update_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do nothing: Lightning's way reads every figure from the device after every batch."""

    def _describe(self, trainer: pl.Trainer) -> str:
        end = self._pace.end(trainer, self._first_step)
        parts = [f"{self._pace.recent_rate():.0f} img/s"]
        if end.seconds is not None and end.steps != trainer.global_step:
            parts.append(f"{clock(end.seconds)} left")
        figures = {
            name.removeprefix("train/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("train/") and value.numel() == 1 and not name.endswith(_NOT_SHOWN)
        }
        return "  ".join(parts + [f"{name} {value:.3g}" for name, value in figures.items()])


class _Facts(ProgressColumn):
    """Figures beside the training bar, as text that was made in the training thread."""

    def __init__(self) -> None:
        # The only column that may wrap: many loss terms take a second line instead of squeezing the bar away.
        super().__init__(table_column=Column(no_wrap=False))
        self.text = ""

    def render(self, task: Task) -> Text:
        """Return the text for the training bar, nothing for the others."""
        return Text(self.text if task.description.startswith("Epoch") else "", style="dim")
