"""`hjepa fit | validate | test | predict`: LightningCLI over the modules and data modules of the package."""

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from hjepa_pl.callbacks.budget_clock import seconds_noted
from hjepa_pl.callbacks.collapse_monitor import CollapseMonitor
from hjepa_pl.callbacks.feature_writer import FeatureWriter
from hjepa_pl.callbacks.peers import Peers
from hjepa_pl.callbacks.probe_callback import ProbeCallback
from hjepa_pl.cli.checkpoints import AtomicCheckpointIO, CheckpointConfig
from hjepa_pl.cli.errors import first_line, parser_sentence
from hjepa_pl.cli.help import GROUPS, RUN_KEYS, all_keys
from hjepa_pl.cli.resume import (
    find_checkpoint,
    misfit,
    read_checkpoint,
    refuse_complete,
    refuse_other_settings,
    refuse_unfit,
)
from hjepa_pl.cli.run_callbacks import loggers, of_training, refuse_callbacks
from hjepa_pl.cli.run_folder import LoggingConfig, SaveConfig, refuse_folder, set_aside
from hjepa_pl.cli.unknown_keys import refuse_absent_accelerator, refuse_unknown
from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.data.sources.bad_files import BAD_FILES
from hjepa_pl.models.pretrained import weights_follow
from hjepa_pl.modules.base import PretrainModule
from hjepa_pl.modules.check_run import check_data
from hjepa_pl.modules.check_trainer import check_keys, check_trainer, check_warmup
from hjepa_pl.modules.config import complete_settings
from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import to_plain

__all__ = ["HJEPACLI", "HJEPALightningModule", "MultiDatasetDataModule"]


class HJEPACLI(LightningCLI):
    """LightningCLI with the package's callbacks, outputs and refusals."""

    argv: ClassVar[Sequence[str]] = ()
    """The words of the command line, to tell a key from its beginning."""
    started: ClassVar[float] = 0.0
    """When the command was given, by `time.monotonic`."""
    begun: ClassVar[Path | None] = None
    """Folder of the run, once it is known."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys that belong to a run rather than to model, data or Trainer."""
        for key in RUN_KEYS:
            parser.add_argument(f"--{key.name}", type=key.hint, default=key.default, help=key.meaning)
        parser.add_argument("--checkpoint", type=CheckpointConfig, default=CheckpointConfig())
        parser.add_argument("--logging", type=LoggingConfig, default=LoggingConfig())
        parser.add_lightning_class_args(CollapseMonitor, "collapse")
        # Without them a config that names no class would have no keys, and --print_config none to print.
        for group in ("model", "data"):
            parser.set_defaults({group: {"class_path": f"{GROUPS[group].__module__}.{GROUPS[group].__name__}"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the words; what the parser refuses becomes one sentence, with the key that was meant."""
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            raise ConfigError(parser_sentence(str(error), [key.name for key in all_keys()])) from None

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint.

        LightningCLI would let its settings overrule the config's in silence; here they meet in `_compare`.
        """
        config = self.config[self.config["subcommand"]]
        path = config.get("ckpt_path")
        self.checkpoint: dict[str, Any] | None = None
        if path is None:
            if self.config["subcommand"] != "fit":
                raise ConfigError(f"{self.config['subcommand']} needs --ckpt_path: a checkpoint, or last.")
            return
        found = find_checkpoint(path, self.folder_of(config))
        config["ckpt_path"] = str(found)
        self.checkpoint = read_checkpoint(found)
        if self.config["subcommand"] == "fit":
            refuse_unfit(self.checkpoint)

    @staticmethod
    def folder_of(config: Any) -> Path:
        """Return the run's folder, results_dir/experiment_name."""
        return Path(config["results_dir"]) / config["experiment_name"]

    def _set_seed(self) -> None:
        """Refuse a seed that is none, and seed what the package has no counters for."""
        seed = self.config[self.config["subcommand"]]["seed_everything"]
        if isinstance(seed, bool) or not 0 <= (seed or 0) < 2**32:
            shown = str(seed).lower() if isinstance(seed, bool) else seed
            raise ConfigError(f"invalid `seed_everything={shown}`: must be a whole number from 0 to {2**32 - 1}.")
        super()._set_seed()

    # -------------------------------------------------------------------------------------------- before the classes

    def before_instantiate_classes(self) -> None:
        """Refuse abbreviated keys, and carry the run's keys to model and data."""
        config = self.config[self.subcommand]
        refuse_unknown(self.argv, config)
        self.folder = HJEPACLI.begun = self.folder_of(config)
        if not re.fullmatch(r"[\w-][\w .+=-]*", config["experiment_name"]):
            raise ConfigError(
                f"experiment_name '{config['experiment_name']}' is no plain folder name; use letters, digits, - and _."
            )
        if self.subcommand in ("fit", "predict"):
            refuse_folder(self.folder)
        # What config.yaml shall hold: the keys as given, before they are carried on, and a run of its own.
        self.to_save = config.clone()
        if self.subcommand == "fit":
            self.to_save["ckpt_path"], self.to_save["override"] = None, False
        model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
        if config["time_budget"] is not None:
            if model.get("time_budget") is not None:
                raise ConfigError("time_budget is given twice, at the top and in model.init_args; give it at the top.")
            model["time_budget"] = config["time_budget"]
        seed = config["seed_everything"]
        for args in (model, data):
            if args.get("seed") is None:
                args["seed"] = int(seed) if seed is not None else 0
        if trainer["max_epochs"] is None and (trainer["max_steps"] or -1) < 0 and trainer["max_time"] is None:
            trainer["max_epochs"] = -1 if model.get("time_budget") else 100
        if trainer["max_time"] is not None:
            raise ConfigError(
                f"trainer.max_time {trainer['max_time']} would cut the schedules short; use time_budget, which ends "
                "the run in time with its schedules complete."
            )
        check_keys(trainer.as_dict(), budgeted=bool(model.get("time_budget")))
        refuse_absent_accelerator(trainer["accelerator"])
        if trainer["default_root_dir"] is not None:
            raise ConfigError("trainer.default_root_dir does nothing here; use results_dir and experiment_name.")
        if self.subcommand == "fit" and config["override"] and self.checkpoint is None:
            raise ConfigError("override does nothing without ckpt_path; remove it.")

    def instantiate_classes(self) -> None:
        """Make data, model and Trainer; the weights of a resumed model are not read from where the first start was."""
        with weights_follow(self.checkpoint is not None):
            super().instantiate_classes()

    # ---------------------------------------------------------------------------------------------------- the trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        """Make the Trainer with loggers, checkpoints and what watches."""
        options = self.config[self.subcommand]
        if self.subcommand == "fit":
            resumed = self.checkpoint["global_step"] if self.checkpoint and self._goes_on() else None
            config["logger"] = loggers(config["logger"], options["logging"], self.folder, resumed)
        elif config["logger"] in (None, True):
            config["logger"] = False
        callbacks += self._watchers(config, options)
        config["plugins"] = [*_as_list(config["plugins"]), AtomicCheckpointIO()]
        config["default_root_dir"] = str(self.folder)
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
            chosen = f"accelerator '{config['accelerator']}', devices {config['devices']!r}"
            raise ConfigError(f"trainer ({chosen}): {first_line(error).rstrip('.!')}.") from None

    def _watchers(self, config: dict[str, Any], options: Any) -> list[pl.Callback]:
        """Return the callbacks of a run, but for kinds that the config lists itself."""
        probes = [probe.title or probe.name for probe in self.datamodule.probe]
        found: list[pl.Callback] = [Peers()]
        if self.subcommand == "fit" and not config["fast_dev_run"]:
            save = SaveConfig(self._parser("fit"), self.to_save, folder=str(self.folder))
            budgeted = getattr(self.model, "budget", None) is not None
            found += of_training(config, options["checkpoint"], self.folder, probes, save, budgeted=budgeted)
        if probes and self.subcommand != "predict":
            found.append(ProbeCallback())
        if self.subcommand == "predict":
            found.append(FeatureWriter(str(self.folder)))
        if type(self.model) is HJEPALightningModule:  # another's may log what it likes
            refuse_callbacks(_as_list(config["callbacks"]), probes)
        own = tuple({type(c) for c in _as_list(config["callbacks"])} - {ModelCheckpoint})
        return [c for c in found if not own or not isinstance(c, own)]

    # ------------------------------------------------------------------------------------------------- before the run

    def _goes_on(self) -> bool:
        """Return whether the run continues in its own folder, rather than starting one."""
        path = self.config["fit"].get("ckpt_path")
        return path is not None and self.folder.absolute() in Path(path).absolute().parents

    def fit(self, model: pl.LightningModule, **kwargs: Any) -> None:
        """Train. An earlier run of the name moves out of the way, and back should this one be refused."""
        aside, fresh = None, not self._goes_on() and not self.config["fit"]["trainer"]["fast_dev_run"]
        if fresh and self.trainer.is_global_zero:
            aside = set_aside(self.folder)
            (self.folder / "logs").mkdir(parents=True)
        try:
            self.trainer.fit(model, **kwargs)
        except Exception as error:
            refused = self._refused(error)
            if refused is None:
                raise
            # What has trained, or names bad files, stays.
            resumed = self.checkpoint["global_step"] if self.checkpoint else 0
            began = self.trainer.global_step > resumed or (self.folder / BAD_FILES).exists()
            if fresh and self.trainer.is_global_zero and not began:
                shutil.rmtree(self.folder)
                if aside is not None:
                    aside.rename(self.folder)
            raise refused from None
        if aside is not None:
            print(f"An earlier run of this name is now in {aside} (--ckpt_path last would have resumed it).")

    def after_instantiate_classes(self) -> None:
        """Refuse what does not go together, before an image is read."""
        if isinstance(self.model, HJEPALightningModule):
            self._refuse_early(self.model)
        if self.checkpoint is not None:
            self._compare(self.checkpoint)
            if self.subcommand == "fit":
                limits = self.config["fit"]["trainer"]
                refuse_complete(self.checkpoint, limits["max_epochs"], limits["max_steps"])
        if self.subcommand == "fit" and isinstance(self.model, PretrainModule):
            self.model.clock = {
                "started": self.started,
                "spent": seconds_noted(self.folder) if self._goes_on() else 0.0,
            }

    def _refuse_early(self, model: HJEPALightningModule) -> None:
        check_trainer(self.trainer, model.budget)
        check_data(self.datamodule, model, self.trainer.world_size)
        if self.subcommand == "fit":
            check_warmup(model.optimizer_config, self.trainer)
            model.check_device(self.trainer)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run, and say so where the checkpoint is what cannot be restored."""
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            refused = self._refused(error)
            if refused is None:
                raise
            raise refused from None

    def _refused(self, error: Exception) -> ConfigError | None:
        """Return the refusal that an error is, or that of the checkpoint which it comes from; None for another."""
        if isinstance(error, ConfigError):
            return error
        if isinstance(error, ModuleNotFoundError) and "Requirement" in str(error):  # Lightning's word for a package
            return ConfigError(f"{first_line(error)}; install it, or remove the key that asks for it.")
        if self.checkpoint is None:
            return None
        return misfit(error, self.config[self.subcommand]["ckpt_path"])

    def _compare(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other settings, unless `override` says so."""
        old, new = dict(checkpoint["hyper_parameters"]), dict(to_plain(self.model.hparams))
        data = checkpoint.get("hjepa_data", {})
        try:
            if isinstance(self.model, HJEPALightningModule):
                old, new = complete_settings(old), complete_settings(new)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ConfigError(
                f"ckpt_path: its settings cannot be read ({first_line(error)}); give another checkpoint."
            ) from None
        if self.subcommand == "fit":
            old |= {"data": data, "trainer": checkpoint.get("hjepa_trainer", {})}
            new["data"], new["trainer"] = self.datamodule.settings(), {}
            if isinstance(self.model, PretrainModule):
                self.model.trainer = self.trainer
                new["trainer"] = self.model.trainer_settings()
        refuse_other_settings(old, new, override=self.config[self.subcommand]["override"])


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
