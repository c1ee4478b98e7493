"""Keys of a run: checked as they are typed, and passed on to model, data and Trainer."""

import re
from typing import Any

from hjepa_pl.cli.unknown_keys import check_accelerator
from hjepa_pl.modules.check_trainer import check_keys
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import as_typed


def check_seed(seed: Any) -> None:
    """Check `seed_everything`.

    Raises:
        ConfigError: If it is not a whole number from 0 to 2**32 - 1 or null.
    """
    if isinstance(seed, bool) or not 0 <= (seed or 0) < 2**32:
        raise ConfigError(
            f"invalid `seed_everything={as_typed(seed)}`: must be a whole number in [0, {2**32 - 1}] or null."
        )


def check_name(name: str) -> None:
    """Check `experiment_name`.

    Raises:
        ConfigError: If it is not a plain folder name.
    """
    if not re.fullmatch(r"[\w-][\w .+=-]*", name):
        raise ConfigError(
            f"invalid `experiment_name={name}`: must be the name of a folder; use letters, digits, - and _."
        )


def pass_on(config: Any) -> None:
    """Pass the keys of a run on to model, data and Trainer.

    Args:
        config: Of the command; changed in place.

    Raises:
        ConfigError: If `time_budget` is set twice.
    """
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    if config["time_budget"] is not None:
        if model.get("time_budget") is not None:
            raise ConfigError("time_budget is set twice, at the top level and in model; remove model.time_budget.")
        model["time_budget"] = config["time_budget"]
    seed = config["seed_everything"]
    for args in (model, data):
        if args.get("seed") is None:
            args["seed"] = int(seed) if seed is not None else 0
    if trainer["max_epochs"] is None and (trainer["max_steps"] or -1) < 0 and trainer["max_time"] is None:
        trainer["max_epochs"] = -1 if model.get("time_budget") else 100


def check_trainer_keys(config: Any) -> None:
    """Check the Trainer's keys by their values alone.

    Raises:
        ConfigError: If one is invalid, or another key is to be used instead.
    """
    trainer = config["trainer"]
    if trainer["max_time"] is not None:
        raise ConfigError(
            f"invalid `trainer.max_time={as_typed(trainer['max_time'])}`: it would cut the schedules short; use "
            "time_budget, which ends the run in time with its schedules complete."
        )
    check_keys(trainer.as_dict(), budgeted=bool(config["model"]["init_args"].get("time_budget")))
    check_accelerator(trainer["accelerator"])
    if trainer["default_root_dir"] is not None:
        raise ConfigError(
            f"invalid `trainer.default_root_dir={trainer['default_root_dir']}`: has no effect; use results_dir and "
            "experiment_name."
        )
