"""The objects of a `hjepa fit` run, made without running."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hjepa_pl.cli.arguments import read_words
from hjepa_pl.cli.cli import HJEPACLI
from hjepa_pl.cli.main import start
from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.data.augment.multicrop import ViewPlan
from hjepa_pl.data.sources.registry import DATASETS, Dataset
from hjepa_pl.models.pretrained import without_pretrained
from hjepa_pl.modules.base import PretrainModule
from hjepa_pl.tools.quiet import quiet_lightning
from hjepa_pl.utils.run_length import limited, total_steps


@contextmanager
def scratch_folder() -> Iterator[str]:
    """Yield a temporary results_dir, and silence Lightning's messages about the hardware."""
    with quiet_lightning(), tempfile.TemporaryDirectory(prefix="hjepa-") as folder:
        yield folder


class ToolCLI(HJEPACLI):
    """Makes the objects of `hjepa fit`, and does not run them.

    Args:
        scratch: The folder that replaces results_dir.

    Attributes:
        results_dir: What it replaces.
    """

    results_dir = "results"

    def __init__(self, *args: Any, scratch: str, **kwargs: Any) -> None:
        self.scratch = scratch
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return fit only: the parsers of the other commands take most of the time of parsing."""
        return {"fit": HJEPACLI.subcommands()["fit"]}

    def before_instantiate_classes(self) -> None:
        """Replace results_dir, then check the settings as fit does."""
        self.results_dir = self.config["fit"]["results_dir"]
        self.config["fit"]["results_dir"] = self.scratch
        super().before_instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        """Stop here."""


class DryCLI(ToolCLI):
    """Makes the objects of `hjepa fit` with networks on the meta device: no image is read, nothing is computed.

    Attributes:
        views: The views that the data module makes.
    """

    views: ViewPlan | None = None

    def instantiate_classes(self) -> None:
        """Make the networks on the meta device. Nothing is downloaded; a file of pretrained weights is read."""
        encoder = self.config["fit"]["model"]["init_args"].get("encoder")
        downloads = getattr(encoder, "pretrained", None) is True or (
            hasattr(encoder, "get") and encoder.get("pretrained") is True
        )
        with torch.device("meta"), without_pretrained(downloads):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Make the Trainer on this machine's device, not the meta device."""
        with torch.device("cpu"):
            return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """Connect model, data and Trainer, and check them as fit does before data is read."""
        super().after_instantiate_classes()
        self.trainer._data_connector.attach_data(self.model, datamodule=self.datamodule)
        self.trainer.strategy.connect(self.model)
        if isinstance(self.datamodule, MultiDatasetDataModule):
            self.views = self.datamodule.planned_views()
        self.model.setup("fit")

    def load_data(self) -> None:
        """Load the datasets as fit does; nothing is downloaded."""
        self.datamodule.setup("fit")

    def load_embedded(self) -> None:
        """Load the datasets, if all of them are part of a package."""
        sets = [*getattr(self.datamodule, "datasets", [None]), *getattr(self.datamodule, "probe", [])]
        embedded = {name for name, entry in DATASETS.items() if isinstance(entry, Dataset) and entry.embedded}
        if all(getattr(s, "name", None) in embedded for s in sets):
            self.load_data()

    def batches(self) -> int | None:
        """Return the batches of an epoch; None if that depends on data that are not loaded."""
        if not getattr(self.datamodule, "knows_epoch", False):
            return None
        return limited(self.trainer, self.datamodule.batches_per_epoch)

    def steps(self) -> float | None:
        """Return the optimizer steps of the run, and check that warm-up and curricula end within them.

        None if that depends on data that are not loaded; infinite if only the time budget ends the run.
        """
        batches = self.batches()
        if batches is None or not isinstance(self.model, PretrainModule):
            return None
        self.model.check_length(self.datamodule.batches_per_epoch)
        self.trainer.fit_loop.max_batches = batches
        self.model.on_train_start()
        return total_steps(self.trainer)


def prepare(words: Sequence[str], kind: type[ToolCLI], scratch: str, **own: Any) -> Any:
    """Return the command-line object of `hjepa fit`, which holds model, data and Trainer.

    Args:
        words: The arguments of fit.
        kind: The class of the object.
        scratch: The folder that replaces results_dir.
        own: Further keyword arguments of `kind`.

    Raises:
        ConfigError: As fit; errors of the parser and of Lightning are raised as they are (see `one_sentence`).
    """
    return start(read_words(["fit", *words]), kind, scratch=scratch, **own)
