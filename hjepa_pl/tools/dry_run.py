"""The objects that `hjepa fit` would make of a config, without a run."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from hjepa_pl.cli.arguments import read_words
from hjepa_pl.cli.cli import HJEPACLI
from hjepa_pl.cli.main import start
from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.data.augment.multicrop import ViewPlan
from hjepa_pl.models.pretrained import weights_follow
from hjepa_pl.modules.base import PretrainModule
from hjepa_pl.utils.run_length import limited, total_steps


@contextmanager
def scratch_folder() -> Iterator[str]:
    """Give a folder in the place of results_dir, for the time of a tool; quiet Lightning's notes about the machine."""
    noisy = [logging.getLogger(f"lightning.{n}") for n in ("fabric", "pytorch")]
    levels = [log.level for log in noisy]
    try:
        for log in noisy:
            log.setLevel(logging.WARNING)
        with tempfile.TemporaryDirectory(prefix="hjepa-") as folder:
            yield folder
    finally:
        for log, level in zip(noisy, levels, strict=True):
            log.setLevel(level)


class ToolCLI(HJEPACLI):
    """Makes what `hjepa fit` would make of a command line, and does not run it. Its files go to a scratch folder."""

    scratch: ClassVar[str] = ""

    def before_instantiate_classes(self) -> None:
        """Refuse as fit does; then let the run's folder be the scratch folder."""
        self.config["fit"]["results_dir"] = self.scratch
        super().before_instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        """Stop here."""


class DryCLI(ToolCLI):
    """What fit would make, with networks that have shapes but no storage: nothing is read, nothing is computed.

    Attributes:
        views: Which views the data makes.
    """

    views: ViewPlan | None = None

    def instantiate_classes(self) -> None:
        """Make the networks on the meta device. Weights that fit would download are not; those in a file are read."""
        encoder = self.config["fit"]["model"]["init_args"].get("encoder")
        downloads = getattr(encoder, "pretrained", None) is True or (
            hasattr(encoder, "get") and encoder.get("pretrained") is True
        )
        with torch.device("meta"), weights_follow(downloads):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Make the Trainer, for this machine's device."""
        with torch.device("cpu"):
            return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """Let model, data and Trainer meet as far as they do before data is read, and refuse what fit would."""
        super().after_instantiate_classes()
        self.trainer._data_connector.attach_data(self.model, datamodule=self.datamodule)
        self.trainer.strategy.connect(self.model)
        if isinstance(self.datamodule, MultiDatasetDataModule):
            self.views = self.datamodule.planned_views()
        self.model.setup("fit")

    def load_data(self) -> None:
        """Read the data sets, as fit does when it starts; nothing is downloaded."""
        self.datamodule.setup("fit")

    def batches(self) -> int | None:
        """Return the batches of an epoch; None where that depends on data that are not loaded."""
        if not getattr(self.datamodule, "knows_epoch", False):
            return None
        return limited(self.trainer, self.datamodule.batches_per_epoch)

    def steps(self) -> float | None:
        """Return the optimizer steps of the run, and refuse a warm-up or curriculum that it would not reach the end of.

        None where that depends on data; infinite where only the clock ends it.
        """
        batches = self.batches()
        if batches is None or not isinstance(self.model, PretrainModule):
            return None
        self.model.check_length(self.datamodule.batches_per_epoch)
        self.trainer.fit_loop.max_batches = batches
        self.model.on_train_start()
        return total_steps(self.trainer)


def prepare(words: Sequence[str], kind: type[ToolCLI], scratch: str) -> Any:
    """Return the command line object of `hjepa fit` with these words.

    Raises:
        ConfigError: As fit refuses. (Other errors that `one_sentence` has a sentence for come as they are.)
    """
    kind.scratch = scratch
    return start(read_words(["fit", *words]), kind)
