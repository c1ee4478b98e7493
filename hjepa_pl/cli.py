"""`hjepa fit | validate | test | predict`: LightningCLI over the modules and data modules of the package."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from hjepa_pl.callbacks.collapse import CollapseMonitor
from hjepa_pl.callbacks.features import FeatureWriter
from hjepa_pl.callbacks.probes import ProbeCallback
from hjepa_pl.callbacks.progress import Progress
from hjepa_pl.callbacks.runlog import RunLog
from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.functional.settings import to_plain
from hjepa_pl.modules.base import PretrainModule
from hjepa_pl.modules.checks import check_trainer, check_views
from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.outputs import (
    AtomicCheckpointIO,
    CheckpointConfig,
    LoggingConfig,
    SaveConfig,
    build_loggers,
    checkpoint_callbacks,
    set_aside,
)
from hjepa_pl.refusals import first_line, refusal
from hjepa_pl.types import ConfigError, RunStopped

__all__ = ["HJEPACLI", "HJEPALightningModule", "MultiDatasetDataModule", "run"]

_FREE_ON_RESUME = ("time_budget",)
"""Model settings that a resumed run may change."""


class HJEPACLI(LightningCLI):
    """LightningCLI with the package's callbacks, outputs and refusals."""

    argv: ClassVar[Sequence[str]] = ()
    """The words of the command line, to tell a key from its beginning."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys that belong to a run rather than to model, data or Trainer."""
        parser.add_argument("--experiment_name", type=str, default="run", help="Folder of the run under results_dir.")
        parser.add_argument("--results_dir", type=str, default="results", help="Where runs write their files.")
        parser.add_argument(
            "--time_budget", type=str | None, default=None,
            help='"HH:MM:SS": the run ends by then, with its schedules complete.',
        )  # fmt: skip
        parser.add_argument(
            "--override", type=bool, default=False,
            help="Resume although settings differ from the checkpoint's: the config's are then used.",
        )  # fmt: skip
        parser.add_argument("--checkpoint", type=CheckpointConfig, default=CheckpointConfig())
        parser.add_argument("--logging", type=LoggingConfig, default=LoggingConfig())
        parser.add_lightning_class_args(CollapseMonitor, "collapse")

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint.

        LightningCLI would let its settings overrule the config's in silence; here they meet in `_compare`.
        """
        config = self.config[self.config["subcommand"]]
        path = config.get("ckpt_path")
        self.checkpoint: dict[str, Any] | None = None
        if path is None:
            return
        found = self.folder_of(config) / "checkpoints" / "last.ckpt" if path == "last" else Path(path)
        if not found.is_file():
            hint = "nothing was saved yet; start without --ckpt_path" if path == "last" else "check the path"
            raise ConfigError(f"ckpt_path '{path}': there is no file {found}; {hint}.")
        config["ckpt_path"] = str(found)
        try:
            self.checkpoint = torch.load(found, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise ConfigError(f"ckpt_path '{found}' cannot be read as a checkpoint: {first_line(error)}.") from None
        if "hyper_parameters" not in self.checkpoint or "state_dict" not in self.checkpoint:
            raise ConfigError(f"ckpt_path '{found}' is not a checkpoint of this package; give a .ckpt that it wrote.")

    @staticmethod
    def folder_of(config: Any) -> Path:
        """Return the run's folder, results_dir/experiment_name."""
        return Path(config["results_dir"]) / config["experiment_name"]

    # -------------------------------------------------------------------------------------------- before the classes

    def before_instantiate_classes(self) -> None:
        """Refuse abbreviated keys, and carry the run's keys to model and data."""
        config = self.config[self.subcommand]
        self._refuse_unknown(config)
        self.folder = self.folder_of(config)
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

    def _refuse_unknown(self, config: Any) -> None:
        """Refuse what the parser lets pass: the beginning of a key for the key, and an unknown key set to {}."""
        words = iter(self.argv)
        for word in words:
            name, given, value = word.partition("=")
            if name in ("--config", "-c"):
                for key in _empty_keys(yaml.safe_load(Path(value if given else next(words)).read_text())):
                    if not _has(config, key):
                        raise ConfigError(f"'{key}' is not a key; 'hjepa fit --print_config' lists the keys.")
            elif name.startswith("--") and name != "--help" and not _has(config, name[2:].rstrip("+")):
                raise ConfigError(f"{name} is not a key; write keys out in full ('hjepa fit --print_config').")

    # ---------------------------------------------------------------------------------------------------- the trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        """Make the Trainer with loggers, checkpoints and what watches."""
        options = self.config[self.subcommand]
        if self.subcommand == "fit":
            config["logger"] = self._loggers(config["logger"], options["logging"])
        elif config["logger"] in (None, True):
            config["logger"] = False
        probes = self.datamodule.probe
        monitor = options["checkpoint"].monitor or (f"probe/{_title(probes[0])}/linear" if probes else None)
        if self.subcommand == "fit" and not config.get("fast_dev_run"):
            if config["enable_checkpointing"] is not False:
                folder = self.folder.absolute() / "checkpoints"
                callbacks += checkpoint_callbacks(options["checkpoint"], folder, monitor)
            callbacks.append(RunLog(str(self.folder)))
            if config.get("enable_progress_bar") is not False:
                callbacks.append(Progress())
        if probes and self.subcommand != "predict":
            callbacks.append(ProbeCallback())
        if self.subcommand == "predict":
            callbacks.append(FeatureWriter(str(self.folder)))
        config["plugins"] = [*_as_list(config["plugins"]), AtomicCheckpointIO()]
        config["default_root_dir"] = str(self.folder)
        self.save_config_kwargs = {"folder": str(self.folder)}
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, ValueError) as error:
            chosen = f"accelerator '{config['accelerator']}', devices {config['devices']!r}"
            raise ConfigError(f"trainer ({chosen}): {first_line(error)}.") from None

    def _loggers(self, asked: Any, logging: LoggingConfig) -> Any:
        """Return the run's loggers: ours, or what trainer.logger asks for."""
        if asked in (None, True):
            return build_loggers(logging, self.folder, self.checkpoint["global_step"] if self.checkpoint else None)
        if logging != LoggingConfig():
            raise ConfigError(
                "logging does nothing beside trainer.logger, which replaces its loggers; give one of them."
            )
        return asked

    # ------------------------------------------------------------------------------------------------- before the run

    @rank_zero_only
    def before_fit(self) -> None:
        """Move an earlier run of the name out of the way: nothing is overwritten, and nothing moves for a refusal."""
        if self.checkpoint is None and not self.config["fit"]["trainer"]["fast_dev_run"]:
            aside = set_aside(self.folder)
            if aside:
                print(f"{self.folder} held an earlier run; it is now {aside} (--ckpt_path last would have resumed it).")

    def after_instantiate_classes(self) -> None:
        """Refuse what does not go together, before an image is read."""
        if isinstance(self.model, HJEPALightningModule):
            self._refuse_early(self.model)
        if self.checkpoint is not None:
            self._compare(self.checkpoint)

    def _refuse_early(self, model: HJEPALightningModule) -> None:
        check_trainer(self.trainer, model.image_level)
        check_views(self.datamodule.views, model.image_level)

    def _compare(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other settings, unless `override` says so."""
        old, new = dict(_flatten(checkpoint["hyper_parameters"])), dict(_flatten(to_plain(self.model.hparams)))
        if self.subcommand == "fit":
            old |= {f"data.{k}": v for k, v in _flatten(checkpoint.get("hjepa_data", {}))}
            new |= {f"data.{k}": v for k, v in _flatten(self.datamodule.settings())}
        keys = [k for k in (old | new) if old.get(k) != new.get(k) and k.split(".")[0] not in _FREE_ON_RESUME]
        if keys and not self.config[self.subcommand]["override"]:
            listed = "; ".join(f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in keys[:6])
            more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
            raise ConfigError(
                f"the checkpoint was made with other settings: {listed}{more}; give the same config (it is "
                "config.yaml beside the checkpoint), or --override=true to go on with the new ones."
            )


def _has(config: Any, key: str) -> bool:
    """Return whether a dotted key is in a parsed config, `init_args` written or not."""
    node = config
    for part in key.split("."):
        if hasattr(node, "get") and part not in node and node.get("init_args") is not None:
            node = node["init_args"]
        if not hasattr(node, "keys") or part not in node:
            return False
        node = node[part]
    return True


def _empty_keys(tree: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys of empty mappings."""
    if not isinstance(tree, dict):
        return []
    if not tree:
        return [prefix] if prefix else []
    return [x for k, v in tree.items() for x in _empty_keys(v, f"{prefix}.{k}" if prefix else str(k))]


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _title(probe: Any) -> str:
    return probe.title or probe.name


def _flatten(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested dicts and lists with dotted keys."""
    if isinstance(tree, dict) and tree:
        return [x for k, v in tree.items() for x in _flatten(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(tree, list) and any(isinstance(v, dict | list) for v in tree):
        return [x for i, v in enumerate(tree) for x in _flatten(v, f"{prefix}[{i}]")]
    return [(prefix, tree)]


def run(args: Sequence[str]) -> int:
    """Run a Lightning command; return 0, 1 for a run that had to stop, 2 for a refused setting."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # our small sets need none
    HJEPACLI.argv = list(args[1:])
    try:
        HJEPACLI(
            PretrainModule,
            MultiDatasetDataModule,
            args=list(args),
            seed_everything_default=0,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=SaveConfig,
            parser_kwargs={"allow_abbrev": False, "exit_on_error": False},
            trainer_defaults={"num_sanity_val_steps": -1, "use_distributed_sampler": False, "log_every_n_steps": 10},
        )
    except RunStopped as error:
        return _fail(str(error), 1)
    except Exception as error:
        sentence = refusal(error)
        if sentence is None:
            raise
        return _fail(sentence, 2)
    return 0


def _fail(sentence: str, status: int) -> int:
    print(f"hjepa: error: {sentence}", file=sys.stderr)
    return status
