"""The Trainer's keys, checked by their values alone, before data is read."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    SingleDeviceStrategy,
    SingleDeviceXLAStrategy,
    Strategy,
    XLAStrategy,
)

from hjepa_pl.optim.config import OptimizerConfig
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.run_length import limited
from hjepa_pl.utils.wording import as_typed


class _Rule(NamedTuple):
    """Values that a key may have, and their description in a message."""

    holds: Callable[[Any], bool]
    must: str


def _whole(value: Any, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def _limit(value: Any, *, zero: bool) -> bool:
    """Return whether a value is a number of batches or a fraction of them; `zero` allows none."""
    if isinstance(value, float):
        return 0.0 < value <= 1.0 or (zero and value == 0.0)
    return _whole(value, 0 if zero else 1)


def _accelerator(value: Any) -> bool:
    return not isinstance(value, str) or value.lower() in ("auto", "cpu", "gpu", "cuda", "mps")


def _devices(value: Any) -> bool:
    if isinstance(value, str):
        return value == "auto" or all(x.strip().isdecimal() for x in value.split(",") if x) or value == "-1"
    if isinstance(value, list | tuple):
        return bool(value) and all(_whole(x, 0) for x in value) and len(set(value)) == len(value)
    return _whole(value, 1) or value == -1


_LIMIT = "a number of batches (a whole number), or a fraction of them (with a decimal point, up to 1.0)"
_END = "-1 (no limit), or 1 or more"
_RULES: dict[str, _Rule] = {
    "accelerator": _Rule(_accelerator, "'auto', 'cpu', 'gpu', 'cuda' or 'mps'"),
    "accumulate_grad_batches": _Rule(lambda v: _whole(v, 1), "a whole number >= 1"),
    "barebones": _Rule(lambda v: not v, "false: it turns off logs and checkpoints"),
    "check_val_every_n_epoch": _Rule(
        lambda v: _whole(v, 1), ">= 1; to validate by batches only, set it to null and val_check_interval"
    ),
    "devices": _Rule(_devices, "a number >= 1, a list of different device numbers, -1 for all, or 'auto'"),
    "fast_dev_run": _Rule(lambda v: isinstance(v, bool) or _whole(v, 0), "true, false, or a number of batches >= 1"),
    "gradient_clip_algorithm": _Rule(lambda v: v in ("norm", "value"), "'norm' or 'value'"),
    "gradient_clip_val": _Rule(
        lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < math.inf,
        "a number >= 0, where 0 and null do not clip",
    ),
    "limit_predict_batches": _Rule(lambda v: _limit(v, zero=True), _LIMIT),
    "limit_test_batches": _Rule(lambda v: _limit(v, zero=True), _LIMIT),
    "limit_train_batches": _Rule(lambda v: _limit(v, zero=False), _LIMIT),
    "limit_val_batches": _Rule(lambda v: _limit(v, zero=True), f"{_LIMIT}, 0 for none"),
    "log_every_n_steps": _Rule(lambda v: _whole(v, 1), ">= 1; use a large number to log rarely"),
    "max_epochs": _Rule(lambda v: v == -1 or _whole(v, 1), _END),
    "max_steps": _Rule(lambda v: v == -1 or _whole(v, 1), _END),
    "min_epochs": _Rule(lambda v: _whole(v, 0), ">= 0"),
    "min_steps": _Rule(lambda v: _whole(v, 0), ">= 0"),
    "model_registry": _Rule(lambda v: False, "null: nothing is uploaded"),
    "num_nodes": _Rule(lambda v: _whole(v, 1), ">= 1"),
    "num_sanity_val_steps": _Rule(
        lambda v: _whole(v, -1) or v == math.inf, "-1 (all), 0 (none) or a number of batches"
    ),
    "overfit_batches": _Rule(
        lambda v: not v and not isinstance(v, bool),
        "0: the data module fixes the order of images; set data.epoch_size, or datasets.fraction",
    ),
    "profiler": _Rule(
        lambda v: not isinstance(v, str) or v in ("simple", "advanced", "pytorch"), "'simple', 'advanced' or 'pytorch'"
    ),
    "reload_dataloaders_every_n_epochs": _Rule(
        lambda v: v == 0 and not isinstance(v, bool), "0: epochs differ by their number, so reloading has no effect"
    ),
    "sync_batchnorm": _Rule(
        lambda v: not v,
        "false: the projector gathers embeddings, so its batch norm has the images of all processes already",
    ),
    "use_distributed_sampler": _Rule(lambda v: not v, "false: the data module splits the data between processes"),
    "val_check_interval": _Rule(
        lambda v: not isinstance(v, int | float) or (_limit(v, zero=False) and not isinstance(v, bool)),
        f"{_LIMIT}, or a time 'DD:HH:MM:SS'",
    ),
}
"""Null is Lightning's default. Keys without a rule may have any value of their type."""
_STRATEGIES = ("auto", "ddp", "single_device")
_PYTHON_ONLY = ("ddp_spawn", "ddp_fork", "ddp_notebook")
"""Prefixes of strategies for Python; a command trains with them, but then does not end."""
_SIXTEEN = (
    "stores weights in 16 bits, in which the target encoder never changes (its update is below their resolution); use "
    "'bf16-mixed'"
)
_PRECISIONS = {
    "32-true": "",
    "bf16-mixed": "",
    "bf16-true": _SIXTEEN,
    "16-true": _SIXTEEN,
    "16-mixed": "skips steps whose gradients overflow, but the target encoder is updated; use 'bf16-mixed'",
}
"""Reason why a precision is rejected; empty if it is not."""
_SHORT = {"16": "16-mixed", "32": "32-true", "bf16": "bf16-mixed"}


def check_keys(given: Mapping[str, Any], *, budgeted: bool) -> None:
    """Check a Trainer's keys.

    Args:
        given: Keys as typed, or as a Trainer has them; missing ones are not checked.
        budgeted: Whether the run has a time budget.

    Raises:
        ConfigError: Naming the first that cannot be trained with, or has no effect.
    """
    for key, value in given.items():
        rule = _RULES.get(key)
        if rule is not None and value is not None and not rule.holds(value):
            shown = value if isinstance(value, str) else as_typed(value)
            raise ConfigError(f"invalid `trainer.{key}={shown}`: must be {rule.must}.")
    _check_pairs(given, budgeted)
    strategy = given.get("strategy")
    if isinstance(strategy, str):
        if strategy.startswith(_PYTHON_ONLY):
            raise ConfigError(
                f"invalid `trainer.strategy={strategy}`: is for notebooks and scripts; use 'ddp' in a command."
            )
        if strategy not in _STRATEGIES and not strategy.startswith("ddp_find_unused"):
            raise _invalid_strategy(strategy)
    if given.get("precision") is not None:
        precision = str(given["precision"])
        wrong = _PRECISIONS.get(_SHORT.get(precision, precision), "must be '32-true' or 'bf16-mixed'")
        if wrong:
            raise ConfigError(f"invalid `trainer.precision={precision}`: {wrong}.")


def _check_pairs(given: Mapping[str, Any], budgeted: bool) -> None:
    """Check combinations of keys."""
    for key, end in (("min_epochs", "max_epochs"), ("min_steps", "max_steps")):
        minimum, limit = given.get(key), given.get(end) or -1
        if minimum and budgeted:
            raise ConfigError(f"invalid `trainer.{key}={minimum}`: may not fit in time_budget; remove one of them.")
        if minimum and 0 < limit < minimum:
            raise ConfigError(f"invalid `trainer.{key}={minimum}`: must be <= trainer.{end}={limit}.")
    if given.get("gradient_clip_algorithm") is not None and not given.get("gradient_clip_val"):
        raise ConfigError(
            f"invalid `trainer.gradient_clip_algorithm={given['gradient_clip_algorithm']}`: has no effect without "
            "trainer.gradient_clip_val; set that, or remove it."
        )
    gpus = torch.cuda.is_available() or torch.backends.mps.is_available()
    if given.get("devices") in (-1, "-1") and (given.get("accelerator") == "cpu" or not gpus):
        raise ConfigError("invalid `trainer.devices=-1`: a CPU has no number of devices; set the number of processes.")
    interval = given.get("val_check_interval", 1)
    if given.get("check_val_every_n_epoch", 1) is None and (interval is None or isinstance(interval, float)):
        raise ConfigError(
            f"invalid `trainer.val_check_interval={interval}`: must be a whole number of batches or a time where "
            "trainer.check_val_every_n_epoch is null."
        )
    if given.get("max_epochs") == -1 and given.get("max_steps", -1) == -1 and not budgeted:
        raise ConfigError("the run has no end: set trainer.max_epochs, trainer.max_steps or time_budget.")


def check_strategy(strategy: Strategy) -> None:
    """Reject strategies that shard networks (each rank would clip by a norm of its own) or are untested."""
    whole = isinstance(strategy, DDPStrategy | SingleDeviceStrategy)
    if not whole or isinstance(strategy, XLAStrategy | SingleDeviceXLAStrategy):
        raise _invalid_strategy(getattr(strategy, "strategy_name", None) or type(strategy).__name__)


def _invalid_strategy(strategy: str) -> ConfigError:
    return ConfigError(
        f"invalid `trainer.strategy={strategy}`: must be 'auto' or 'ddp', since gradients are clipped and the target "
        "encoder is updated on whole networks."
    )


def check_trainer(trainer: pl.Trainer, budget: float | None = None) -> None:
    """Check a Trainer.

    Raises:
        ConfigError: Naming the key with which the model does not learn, or that the data module replaces.
    """
    check_strategy(trainer.strategy)
    found = {key: getattr(trainer, key) for key in _RULES if hasattr(trainer, key)}
    check_keys({**found, "precision": str(trainer.precision)}, budgeted=budget is not None)
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise ConfigError(
            "invalid `trainer.use_distributed_sampler=true`: would split the probe sets a second time; set it "
            "to false, as the data module splits the data between processes."
        )


def check_warmup(optimizer: OptimizerConfig, trainer: pl.Trainer) -> None:
    """Check that the warm-up is shorter than the run, where both are in epochs or in steps.

    Raises:
        ConfigError: If it is not.
    """
    for unit in ("epochs", "steps"):
        warmup, end = getattr(optimizer, f"warmup_{unit}"), getattr(trainer, f"max_{unit}")
        if warmup and end is not None and 0 < end <= warmup and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ConfigError(f"invalid `optimizer.warmup_{unit}={warmup:g}`: must be < trainer.max_{unit}={end}.")


def check_epoch(trainer: pl.Trainer, batches: int) -> None:
    """Check the Trainer's limits against the length of an epoch.

    Args:
        trainer: Of the run.
        batches: Of an epoch of the data.

    Raises:
        ConfigError: If no batch is left, or no validation would run.
    """
    kept, interval = limited(trainer, batches), trainer.val_check_interval
    if kept < 1:
        raise ConfigError(
            f"invalid `trainer.limit_train_batches={trainer.limit_train_batches}`: leaves none of {batches} batches an "
            "epoch; set a whole number of batches."
        )
    if trainer.check_val_every_n_epoch is not None and isinstance(interval, int) and interval > kept:
        raise ConfigError(
            f"invalid `trainer.val_check_interval={interval}`: must be <= {kept}, the batches of an epoch, or "
            "trainer.check_val_every_n_epoch null."
        )
    if isinstance(interval, float) and int(kept * interval) < 1:
        raise ConfigError(
            f"invalid `trainer.val_check_interval={interval}`: is less than one of {kept} batches an epoch; set a "
            "whole number of batches."
        )
