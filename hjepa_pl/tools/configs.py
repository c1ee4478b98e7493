"""What a tool is given: configs and keys as `hjepa fit` takes them, and the objects that fit would make of them."""

import logging
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml

from hjepa_pl.cli import HJEPACLI, start
from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.data.multicrop import ViewPlan
from hjepa_pl.data.surroundings import batch_limit
from hjepa_pl.functional.length import total_steps
from hjepa_pl.models.pretrained import weights_follow
from hjepa_pl.modules.base import PretrainModule
from hjepa_pl.refusals import refusal
from hjepa_pl.types import ConfigError, RunStopped

_YAML = (".yaml", ".yml")
_WEIGHTS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


def find_configs(path: str) -> tuple[list[str], list[str]]:
    """Return the runs that a file or a folder holds, and the files of a folder that are layers for others.

    A run in a folder names its `experiment_name`; a file without one is read after another that does. A file that is
    given by itself is a run.

    Raises:
        ConfigError: If there is no such file, or a folder holds no run.
    """
    if not Path(path).exists():
        raise ConfigError("there is no such file or folder.")
    if not Path(path).is_dir():
        return [path], []
    files = sorted(str(p) for p in Path(path).rglob("*") if p.suffix in _YAML and p.is_file())
    runs = [file for file in files if _is_run(file)]
    if not runs:
        raise ConfigError(
            f"the folder holds no run: {'no file in it names an experiment_name' if files else 'no *.yaml in it'}."
        )
    return runs, [file for file in files if file not in runs]


def _is_run(path: str) -> bool:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return True  # which is then refused with the reason
    return isinstance(tree, dict) and "experiment_name" in tree


def refuse_other_files(path: str) -> None:
    """Refuse what is no config at all, where the parser would say something about bytes.

    Raises:
        ConfigError: If the file is missing, a checkpoint, or not a YAML mapping.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"there is no file {path}.")
    if file.suffix in _WEIGHTS or zipfile.is_zipfile(file):
        raise ConfigError(
            "this is a checkpoint, not a config; a run's config is config.yaml in the folder above its checkpoints."
        )
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError("this is no text file; give a config in YAML.") from None
    except OSError as error:
        raise ConfigError(f"it cannot be read ({error.strerror}).") from None
    except yaml.YAMLError:
        return  # the parser says where
    if not isinstance(tree, dict):
        raise ConfigError("this is no config: a YAML mapping of keys was expected.")


def layers(words: Sequence[str]) -> list[str]:
    """Return the files that are given by --config among words for fit.

    Raises:
        ConfigError: If one of them is no config; the sentence names it.
    """
    pairs = zip(words, [*words, ""][1:], strict=True)
    named = [(w.partition("=")[2] or after) for w, after in pairs if w.partition("=")[0] in ("--config", "-c")]
    for path in filter(None, named):
        try:
            refuse_other_files(path)
        except ConfigError as error:
            raise ConfigError(f"--config {path}: {error}") from None
    return [path for path in named if path]


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


def sentence(error: Exception) -> str:
    """Return the sentence of a refusal; raise the error itself if it is a defect of the program."""
    said = str(error) if isinstance(error, RunStopped) else refusal(error)
    if said is None:
        raise error
    return said


class ToolCLI(HJEPACLI):
    """Makes what `hjepa fit` would make of a command line, and does not run it. Its files go to a scratch folder."""

    scratch: ClassVar[str] = ""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse the words that a tool passes on, which are not those of the process."""
        self.config = parser.parse_args(args)

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
        whole: int = self.datamodule.batches_per_epoch
        return max(1, min(whole, batch_limit(self.trainer, whole) or whole))

    def steps(self) -> float | None:
        """Return the optimizer steps of the run, and refuse a warm-up or curriculum that it would not reach the end of.

        None where that depends on data; infinite where only the clock ends it.
        """
        batches = self.batches()
        if batches is None or not isinstance(self.model, PretrainModule):
            return None
        self.trainer.fit_loop.max_batches = batches
        self.model.on_train_start()
        return total_steps(self.trainer)


def prepare(words: Sequence[str], kind: type[ToolCLI], scratch: str) -> Any:
    """Return the command line object of `hjepa fit` with these words.

    Raises:
        ConfigError: As fit refuses. (Other errors that `refusal` has a sentence for come as they are.)
    """
    kind.scratch = scratch
    return start(["fit", *words], kind)


def fail(tool: str, place: str, said: str, status: int = 2) -> int:
    """Print a refusal, or what else ended a tool, and return its exit status."""
    print(f"{tool}: {place}: {said}" if place else f"hjepa {tool}: error: {said}", file=sys.stderr)
    return status
