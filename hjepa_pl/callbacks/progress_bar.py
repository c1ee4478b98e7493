"""Progress bar: epoch, speed, time left and loss terms."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import CustomBarColumn
from rich.console import Console
from rich.progress import ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from hjepa_pl.callbacks.run_status import RunStatus, is_logging_step, loss_terms
from hjepa_pl.types import ConfigError


class ProgressBar(RichProgressBar):
    """Lightning's rich bar with images per second, the time left of the whole run, and each loss term by name.

    Metrics are read on logging steps only, where the module has computed them anyway: no step waits for the device
    because of the bar. If standard output is not a terminal (a file, a pipe, a batch job) there is no bar and no
    control code: one plain line is printed per epoch.

    Args:
        refresh_rate: Maximum number of redraws per second.
        leave: Keep the bar of each finished epoch on the screen.

    Raises:
        ConfigError: If `refresh_rate` is less than 1.
    """

    def __init__(self, refresh_rate: int = 4, leave: bool = True) -> None:
        if refresh_rate < 1:
            raise ConfigError(
                f"invalid `ProgressBar.refresh_rate={refresh_rate}`: must be a whole number >= 1; for no bar set "
                "trainer.enable_progress_bar to false."
            )
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self._status = RunStatus()
        self._plain = False
        self._text = _TextColumn()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose between bar and plain lines."""
        super().setup(trainer, pl_module, stage)
        console = Console()
        self._plain = not (console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal))
        if self._plain:
            self.disable()

    def configure_columns(self, trainer: pl.Trainer) -> list[Any]:
        """Return the columns, narrow enough for 100 characters with a few loss terms."""
        style = self.theme.progress_bar
        bar = CustomBarColumn(
            complete_style=style, finished_style=self.theme.progress_bar_finished, pulse_style=style, bar_width=16
        )
        return [TextColumn("{task.description}"), bar, TextColumn("{task.completed:.0f}/{task.total:.0f}"), self._text]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._status = RunStatus()
        self._status.start(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar; read the metrics on logging steps."""
        self._status.count(trainer, batch)
        if self.train_progress_bar_id is None and self.is_enabled:
            self._initialize_train_progress_bar_id()  # resumed in mid-epoch, without an epoch start
        self._update(self.train_progress_bar_id, batch_idx + 1)
        if self.is_enabled and is_logging_step(trainer, batch_idx):
            self._text.text = self._describe(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the metrics of the epoch; as a plain line if there is no bar."""
        if not trainer.is_global_zero:
            return
        if self._plain or not self._text.text:
            self._text.text = self._describe(trainer)
        if self._plain:
            print(f"epoch {self._status.epoch(trainer, trainer.current_epoch)}  {self._text.text}", flush=True)
        self.refresh()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the training clock."""
        super().on_validation_start(trainer, pl_module)
        self._status.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue the training clock."""
        self.reset_dataloader_idx_tracker()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._status.resume()

    def _get_train_description(self, current_epoch: int) -> str:
        text = f"Epoch {self._status.epoch(self.trainer, current_epoch)}"
        return f"{text:{len(self.validation_description)}}"

    def _update_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do nothing: Lightning's own reads every metric from the device after every batch."""

    def _describe(self, trainer: pl.Trainer) -> str:
        return "  ".join(filter(None, [self._status.speed(trainer), loss_terms(trainer)]))


class _TextColumn(ProgressColumn):
    """Text next to the training bar, made in the training thread."""

    def __init__(self) -> None:
        # The only column that may wrap: many loss terms take a second line instead of squeezing the bar away.
        super().__init__(table_column=Column(no_wrap=False))
        self.text = ""

    def render(self, task: Task) -> Text:
        """Return the text for the training bar, nothing for the others."""
        return Text(self.text if task.description.startswith("Epoch") else "", style="dim")
