"""`hjepa fit | validate | test`: LightningCLI over the modules and data modules of the package."""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from jsonargparse.typing import register_type
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from hjepa_pl.callbacks.budget_clock import seconds_written
from hjepa_pl.callbacks.collapse_monitor import CollapseConfig, CollapseMonitor
from hjepa_pl.callbacks.held_out import HeldOutMetrics
from hjepa_pl.callbacks.peers import Peers
from hjepa_pl.callbacks.probe_callback import ProbeCallback
from hjepa_pl.callbacks.selection import level_names, selection_metrics
from hjepa_pl.cli.checkpoints import AtomicCheckpointIO, CheckpointConfig
from hjepa_pl.cli.errors import first_line, parser_sentence
from hjepa_pl.cli.help import GROUPS, RUN_KEYS, all_keys
from hjepa_pl.cli.resume import (
    HELD_OUT,
    check_incomplete,
    check_resumable,
    check_same_settings,
    find_checkpoint,
    read_checkpoint,
    restore_error,
)
from hjepa_pl.cli.run_callbacks import check_callbacks, loggers, training_callbacks
from hjepa_pl.cli.run_folder import LoggingConfig, SaveConfig, check_folder, move_earlier_run
from hjepa_pl.cli.run_keys import check_name, check_seed, check_trainer_keys, pass_on
from hjepa_pl.cli.tensor_cores import tensor_core_advice
from hjepa_pl.cli.unknown_keys import check_keys_known
from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.data.sources.bad_files import BAD_FILES
from hjepa_pl.losses import Regularizer
from hjepa_pl.losses.regularize import read_regularizer
from hjepa_pl.models.pretrained import without_pretrained
from hjepa_pl.modules.base import PretrainModule
from hjepa_pl.modules.check_data import check_data
from hjepa_pl.modules.check_trainer import check_trainer, check_warmup
from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import to_plain
from hjepa_pl.utils.wording import as_typed

register_type(Regularizer, to_plain, read_regularizer, type_check=isinstance)  # each kind has keys of its own

__all__ = ["HJEPACLI", "HJEPALightningModule", "MultiDatasetDataModule"]


class HJEPACLI(LightningCLI):
    """LightningCLI with the package's callbacks, outputs and checks."""

    begun: ClassVar[Path | None] = None
    """Folder of the run, once known."""

    def __init__(self, *args: Any, argv: Sequence[str], started: float, **kwargs: Any) -> None:
        """Parse the command line, make the objects and run them.

        Args:
            args: As of LightningCLI.
            argv: The words of the command line after the command, to tell a key from its beginning.
            started: When the command was given, by `time.monotonic`.
            kwargs: As of LightningCLI.
        """
        self.argv, self.started = argv, started
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys that belong to a run rather than to model, data or Trainer."""
        for key in RUN_KEYS:
            parser.add_argument(f"--{key.name}", type=key.hint, default=key.default, help=key.meaning)
        parser.add_argument("--checkpoint", type=CheckpointConfig, default=CheckpointConfig())
        parser.add_argument("--logging", type=LoggingConfig, default=LoggingConfig())
        parser.add_argument("--collapse", type=CollapseConfig, default=CollapseConfig())
        # Otherwise a config without class_path would have no keys, and --print_config would print none.
        for group in ("model", "data"):
            parser.set_defaults({group: {"class_path": f"{GROUPS[group].__module__}.{GROUPS[group].__name__}"}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line; an error of the parser becomes one sentence, with the key that was probably meant."""
        try:
            self.config = parser.parse_args(args)
        except argparse.ArgumentError as error:
            known = {key.name: key.hint for key in all_keys()}
            raise ConfigError(parser_sentence(str(error), known, self.argv)) from None

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint.

        LightningCLI would silently replace the config's settings by the checkpoint's; here `_compare` compares them.
        """
        config = self.config[self.config["subcommand"]]
        path = config.get("ckpt_path")
        self.checkpoint: dict[str, Any] | None = None
        if path is None:
            if self.config["subcommand"] != "fit":
                raise ConfigError(
                    f"hjepa {self.config['subcommand']} needs a checkpoint; add --ckpt_path=PATH, or --ckpt_path=last."
                )
            return
        found = find_checkpoint(path, self.folder_of(config))
        config["ckpt_path"] = str(found)
        self.checkpoint = read_checkpoint(found)
        if self.config["subcommand"] == "fit":
            check_resumable(self.checkpoint)

    @staticmethod
    def folder_of(config: Any) -> Path:
        """Return the folder of the run, results_dir/experiment_name."""
        return Path(config["results_dir"]) / config["experiment_name"]

    def _set_seed(self) -> None:
        """Check the seed, and seed what does not use the package's counters."""
        check_seed(self.config[self.config["subcommand"]]["seed_everything"])
        super()._set_seed()

    # -------------------------------------------------------------------------------------------- before the classes

    def before_instantiate_classes(self) -> None:
        """Check the keys, and pass those of the run on to model, data and Trainer."""
        config = self.config[self.subcommand]
        check_keys_known(self.argv, config)
        self.folder = HJEPACLI.begun = self.folder_of(config)
        check_name(config["experiment_name"])
        if self.subcommand == "fit":
            check_folder(self.folder)
        # For config.yaml: the keys as typed, before they are passed on, without those of a resume.
        self.to_save = config.clone()
        if self.subcommand == "fit":
            self.to_save["ckpt_path"], self.to_save["override"] = None, False
        pass_on(config)
        check_trainer_keys(config)
        if self.subcommand == "fit" and config["override"] and self.checkpoint is None:
            raise ConfigError("invalid `override=true`: has no effect without ckpt_path; remove it.")

    def instantiate_classes(self) -> None:
        """Make data, model and Trainer; the weights of a resumed model are not read from where the first start was."""
        with without_pretrained(self.checkpoint is not None):
            super().instantiate_classes()

    # ---------------------------------------------------------------------------------------------------- the trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        """Create the Trainer with loggers, checkpoints and callbacks."""
        options = self.config_init[self.subcommand]
        if self.subcommand == "fit":
            resumed = self.checkpoint["global_step"] if self.checkpoint and self._resumes() else None
            config["logger"] = loggers(config["logger"], options["logging"], self.folder, resumed)
        elif config["logger"] in (None, True):
            config["logger"] = False
        callbacks += self._callbacks(config, options)
        config["plugins"] = [*_as_list(config["plugins"]), AtomicCheckpointIO()]
        config["default_root_dir"] = str(self.folder)
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
            chosen = f"accelerator={config['accelerator']}, devices={as_typed(config['devices'])}"
            raise ConfigError(f"trainer ({chosen}): {first_line(error).rstrip('.!')}.") from None

    def _callbacks(self, config: dict[str, Any], options: Any) -> list[pl.Callback]:
        """Return the callbacks of a run, except for classes that the config lists itself."""
        probes = [probe.title or probe.name for probe in self.datamodule.probe]
        both = getattr(self.model, "target_encoder", None) is not None
        levels = level_names(self.model) if self.datamodule.holdout else None
        metrics = selection_metrics(probes, levels, both=both)
        made: list[pl.Callback] = [Peers(), CollapseMonitor(**vars(options["collapse"]))]
        if self.subcommand == "fit" and not config["fast_dev_run"]:
            save = SaveConfig(self._parser("fit"), self.to_save, folder=str(self.folder))
            budgeted = getattr(self.model, "budget", None) is not None
            made += training_callbacks(
                config, options["checkpoint"], self.folder, metrics, save, budgeted=budgeted,
                pictures=options["logging"].pictures,
            )  # fmt: skip
        if probes:
            made.append(ProbeCallback())
        if self.datamodule.holdout:
            made.append(HeldOutMetrics())
        if type(self.model) is HJEPALightningModule:  # a module of the user's may log other metrics
            check_callbacks(_as_list(config["callbacks"]), metrics)
        listed = _as_list(config["callbacks"])
        if any(isinstance(c, CollapseMonitor) for c in listed) and options["collapse"] != CollapseConfig():
            raise ConfigError(
                "invalid `collapse`: has no effect with a CollapseMonitor in trainer.callbacks; remove one of them."
            )
        own = tuple({type(c) for c in listed} - {ModelCheckpoint})
        return [c for c in made if not own or not isinstance(c, own)]

    # ------------------------------------------------------------------------------------------------- before the run

    def _resumes(self) -> bool:
        """Return True if the run resumes in its own folder."""
        path = self.config["fit"].get("ckpt_path")
        return path is not None and self.folder.absolute() in Path(path).absolute().parents

    def fit(self, model: pl.LightningModule, **kwargs: Any) -> None:
        """Train. An earlier run of the same name is moved, and moved back if this one is rejected before it starts."""
        earlier, fresh = None, not self._resumes() and not self.config["fit"]["trainer"]["fast_dev_run"]
        if fresh and self.trainer.is_global_zero:
            earlier = move_earlier_run(self.folder)
            (self.folder / "logs").mkdir(parents=True)
        self._advise()
        try:
            self.trainer.fit(model, **kwargs)
        except Exception as error:
            rejected = self._rejected(error)
            if rejected is None:
                raise
            # A run that has trained, or listed bad files, stays.
            resumed = self.checkpoint["global_step"] if self.checkpoint else 0
            began = self.trainer.global_step > resumed or (self.folder / BAD_FILES).exists()
            if fresh and self.trainer.is_global_zero and not began:
                shutil.rmtree(self.folder)
                if earlier is not None:
                    earlier.rename(self.folder)
            raise rejected from None
        if earlier is not None:
            print(f"The earlier run of this name was moved to {earlier} (to resume it, use --ckpt_path {earlier}).")

    def _advise(self) -> None:
        """Warn of a GPU whose tensor cores the run does not use."""
        device = self.trainer.strategy.root_device
        if device.type == "cuda":
            advice = tensor_core_advice(str(self.trainer.precision), torch.cuda.get_device_capability(device))
            if advice is not None:
                rank_zero_warn(advice)

    def after_instantiate_classes(self) -> None:
        """Check combinations of settings, before an image is read."""
        if isinstance(self.model, HJEPALightningModule):
            self._check_early(self.model)
        if self.checkpoint is not None:
            self._compare(self.checkpoint)
            if self.subcommand == "fit":
                limits = self.config["fit"]["trainer"]
                check_incomplete(self.checkpoint, limits["max_epochs"], limits["max_steps"])
        if self.subcommand == "fit" and isinstance(self.model, PretrainModule):
            self.model.clock.origin = {
                "started": self.started,
                "spent": seconds_written(self.folder) if self._resumes() else 0.0,
            }

    def _check_early(self, model: HJEPALightningModule) -> None:
        check_trainer(self.trainer, model.budget)
        check_data(self.datamodule, model, self.trainer.world_size)
        if self.subcommand == "fit":
            check_warmup(model.optimizer_config, self.trainer)
            model.check_device(self.trainer)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command; an error in restoring the checkpoint becomes one sentence."""
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            rejected = self._rejected(error)
            if rejected is None:
                raise
            raise rejected from None

    def _rejected(self, error: Exception) -> ConfigError | None:
        """Return an error of a setting or of the checkpoint as a ConfigError; None for another error."""
        if isinstance(error, ConfigError):
            return error
        if isinstance(error, ModuleNotFoundError) and "Requirement" in str(error):  # a missing package
            return ConfigError(f"{first_line(error)}; install it, or remove the key that needs it.")
        if self.checkpoint is None:
            return None
        return restore_error(error, self.config[self.subcommand]["ckpt_path"])

    def _compare(self, checkpoint: dict[str, Any]) -> None:
        """Compare the settings with the checkpoint's."""
        old, new = dict(checkpoint["hyper_parameters"]), dict(to_plain(self.model.hparams))
        data = checkpoint.get("hjepa_data", {})
        if self.subcommand == "fit":
            old |= {"data": data, "trainer": checkpoint.get("hjepa_trainer", {})}
            new["data"], new["trainer"] = self.datamodule.settings(), {}
            if isinstance(self.model, PretrainModule):
                self.model.trainer = self.trainer
                new["trainer"] = self.model.trainer_settings()
        elif self.datamodule.holdout:  # other images than those that the run held out may have been trained on
            old["data"], new["data"] = (
                {key: each.get(key) for key in HELD_OUT} for each in (data, self.datamodule.settings())
            )
        check_same_settings(old, new, override=self.config[self.subcommand]["override"])


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
