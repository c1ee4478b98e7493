"""Whether a Trainer's keys can be trained with: judged from their values alone, before data is read."""

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


class _Rule(NamedTuple):
    """What a key may be, and the sentence's end where it is not."""

    holds: Callable[[Any], bool]
    must: str


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _part(value: Any, *, nothing: bool) -> bool:
    """Return whether a value is a number of batches or a share of them."""
    if isinstance(value, float):
        return 0.0 < value <= 1.0 or (nothing and value == 0.0)
    return _whole(value, 0 if nothing else 1)


def _accelerator(value: Any) -> bool:
    return not isinstance(value, str) or value.lower() in ("auto", "cpu", "gpu", "cuda", "mps")


def _devices(value: Any) -> bool:
    if isinstance(value, str):
        return value == "auto" or all(x.strip().isdecimal() for x in value.split(",") if x) or value == "-1"
    if isinstance(value, list | tuple):
        return bool(value) and all(_whole(x, 0) for x in value) and len(set(value)) == len(value)
    return _whole(value, 1) or value == -1


_LIMIT = "a number of batches (a whole number), or a share of them (a fraction with a point, up to 1.0)"
_END = "-1 (no limit), or 1 or more"
_RULES: dict[str, _Rule] = {
    "accelerator": _Rule(_accelerator, "'auto', 'cpu', 'gpu', 'cuda' or 'mps'"),
    "accumulate_grad_batches": _Rule(lambda v: _whole(v, 1), "a whole number >= 1"),
    "barebones": _Rule(lambda v: not v, "false: it switches off the logs and checkpoints that a run is made of"),
    "check_val_every_n_epoch": _Rule(
        lambda v: _whole(v, 1), ">= 1; to validate by batches alone set it to null, with val_check_interval"
    ),
    "devices": _Rule(_devices, "a number >= 1, a list of different device numbers, -1 for all, or 'auto'"),
    "fast_dev_run": _Rule(lambda v: isinstance(v, bool) or _whole(v, 0), "true, false, or a number of batches >= 1"),
    "gradient_clip_algorithm": _Rule(lambda v: v in ("norm", "value"), "'norm' or 'value'"),
    "gradient_clip_val": _Rule(
        lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v < math.inf,
        "a number >= 0, where 0 and null do not clip",
    ),
    "limit_predict_batches": _Rule(lambda v: _part(v, nothing=True), _LIMIT),
    "limit_test_batches": _Rule(lambda v: _part(v, nothing=True), _LIMIT),
    "limit_train_batches": _Rule(lambda v: _part(v, nothing=False), _LIMIT),
    "limit_val_batches": _Rule(lambda v: _part(v, nothing=True), f"{_LIMIT}, 0 for none"),
    "log_every_n_steps": _Rule(lambda v: _whole(v, 1), ">= 1; take a large number to log seldom"),
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
        "0: the order of images comes from the epoch's plan; set data.epoch_size, or a dataset's fraction",
    ),
    "profiler": _Rule(
        lambda v: not isinstance(v, str) or v in ("simple", "advanced", "pytorch"), "'simple', 'advanced' or 'pytorch'"
    ),
    "reload_dataloaders_every_n_epochs": _Rule(
        lambda v: v == 0 and not isinstance(v, bool), "0: epochs differ by their number, whatever is reloaded"
    ),
    "sync_batchnorm": _Rule(
        lambda v: not v, "false: batch norm sees the images of all processes here, as embeddings are gathered first"
    ),
    "use_distributed_sampler": _Rule(lambda v: not v, "false: the data module deals to the processes itself"),
    "val_check_interval": _Rule(
        lambda v: not isinstance(v, int | float) or (_part(v, nothing=False) and not isinstance(v, bool)),
        f"{_LIMIT}, or a time 'DD:HH:MM:SS'",
    ),
}
"""A key that is null is Lightning's default. Keys without a rule take any value of their type."""
_STRATEGIES = ("auto", "ddp", "single_device")
_STARTED_OTHERWISE = ("ddp_spawn", "ddp_fork", "ddp_notebook")
"""Beginnings of names that Python may use; a command that is given them trains, and then does not come to its end."""
_SIXTEEN = (
    "keeps weights in 16 bits, where the target encoder never moves (its update is below their resolution); use "
    "'bf16-mixed'"
)
_PRECISIONS = {
    "32-true": "",
    "bf16-mixed": "",
    "bf16-true": _SIXTEEN,
    "16-true": _SIXTEEN,
    "16-mixed": "skips steps whose gradients overflow, which the target encoder would not see; use 'bf16-mixed'",
}
"""What is wrong with a precision."""
_SHORT = {"16": "16-mixed", "32": "32-true", "bf16": "bf16-mixed"}


def check_keys(given: Mapping[str, Any], *, budgeted: bool) -> None:
    """Refuse values of a Trainer's keys that cannot be trained with, or would do nothing.

    Args:
        given: The keys as typed, or as a Trainer has them; those that are left out are not judged.
        budgeted: Whether the run has a time budget.

    Raises:
        ConfigError: Naming the first such key.
    """
    for key, value in given.items():
        rule = _RULES.get(key)
        if rule is not None and value is not None and not rule.holds(value):
            typed = str(value).lower() if isinstance(value, bool) else value
            raise ConfigError(f"invalid `trainer.{key}={typed}`: must be {rule.must}.")
    _check_pairs(given, budgeted)
    strategy = given.get("strategy")
    if isinstance(strategy, str):
        if strategy.startswith(_STARTED_OTHERWISE):
            raise ConfigError(
                f"invalid `trainer.strategy={strategy}`: is for notebooks and scripts; a command starts its processes "
                "by 'ddp'."
            )
        if strategy not in _STRATEGIES and not strategy.startswith("ddp_find_unused"):
            raise _refused(strategy)
    if given.get("precision") is not None:
        precision = str(given["precision"])
        wrong = _PRECISIONS.get(_SHORT.get(precision, precision), "must be '32-true' or 'bf16-mixed'")
        if wrong:
            raise ConfigError(f"invalid `trainer.precision={precision}`: {wrong}.")


def _check_pairs(given: Mapping[str, Any], budgeted: bool) -> None:
    """Refuse keys that do not go together."""
    for key, most in (("min_epochs", "max_epochs"), ("min_steps", "max_steps")):
        least, limit = given.get(key), given.get(most) or -1
        if least and budgeted:
            raise ConfigError(f"trainer.{key} {least} may not fit in time_budget; remove it, or the budget.")
        if least and 0 < limit < least:
            raise ConfigError(f"invalid `trainer.{key}={least}`: must be <= trainer.{most}={limit}.")
    if given.get("gradient_clip_algorithm") is not None and not given.get("gradient_clip_val"):
        raise ConfigError(
            f"invalid `trainer.gradient_clip_algorithm={given['gradient_clip_algorithm']}`: does nothing without "
            "trainer.gradient_clip_val; set that, or remove it."
        )
    cards = torch.cuda.is_available() or torch.backends.mps.is_available()
    if given.get("devices") in (-1, "-1") and (given.get("accelerator") == "cpu" or not cards):
        raise ConfigError("invalid `trainer.devices=-1`: a CPU has no number of devices; set a number of processes.")
    interval = given.get("val_check_interval", 1)
    if given.get("check_val_every_n_epoch", 1) is None and (interval is None or isinstance(interval, float)):
        raise ConfigError(
            f"invalid `trainer.val_check_interval={interval}`: must be a whole number of batches or a time where "
            "trainer.check_val_every_n_epoch is null."
        )
    if given.get("max_epochs") == -1 and given.get("max_steps", -1) == -1 and not budgeted:
        raise ConfigError("the run has no end: set trainer.max_epochs, trainer.max_steps or time_budget.")


def check_strategy(strategy: Strategy) -> None:
    """Refuse strategies that shard networks, or that have not been tried: each rank would clip by a norm of its own."""
    whole = isinstance(strategy, DDPStrategy | SingleDeviceStrategy)
    if not whole or isinstance(strategy, XLAStrategy | SingleDeviceXLAStrategy):
        raise _refused(getattr(strategy, "strategy_name", None) or type(strategy).__name__)


def _refused(strategy: str) -> ConfigError:
    return ConfigError(
        f"invalid `trainer.strategy={strategy}`: must be 'auto' or 'ddp', since gradients are clipped and the target "
        "encoder is moved on whole networks."
    )


def check_trainer(trainer: pl.Trainer, budget: float | None = None) -> None:
    """Refuse a Trainer under which the model does not learn, or that does what the data module does itself.

    Raises:
        ConfigError: Naming the key.
    """
    check_strategy(trainer.strategy)
    found = {key: getattr(trainer, key) for key in _RULES if hasattr(trainer, key)}
    check_keys({**found, "precision": str(trainer.precision)}, budgeted=budget is not None)
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise ConfigError(
            "trainer.use_distributed_sampler would share out the probe sets a second time; set it to false: the data "
            "module deals to the processes itself."
        )


def check_warmup(optimizer: OptimizerConfig, trainer: pl.Trainer) -> None:
    """Refuse a warm-up as long as the run, where both are in epochs or in steps: the file alone says so.

    Raises:
        ConfigError: Naming both.
    """
    for unit in ("epochs", "steps"):
        warmup, most = getattr(optimizer, f"warmup_{unit}"), getattr(trainer, f"max_{unit}")
        if warmup and most is not None and 0 < most <= warmup and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ConfigError(f"invalid `optimizer.warmup_{unit}={warmup:g}`: must be < trainer.max_{unit}={most}.")


def check_epoch(trainer: pl.Trainer, batches: int) -> None:
    """Refuse limits that leave nothing of an epoch's batches, and validations that it never comes to.

    Args:
        trainer: The run's.
        batches: Of an epoch, by the data.

    Raises:
        ConfigError: Naming the key.
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
