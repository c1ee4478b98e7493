"""Metrics that checkpoints may be ranked by: of a validation split or of held-out images, never of the test split."""

from collections.abc import Sequence
from typing import Any, Literal

from hjepa_pl.evaluation.base import VAL
from hjepa_pl.evaluation.probes import PROBES, metric_name
from hjepa_pl.types import ConfigError

Mode = Literal["max", "min"]

DEFAULT = "linear"
"""The probe whose validation accuracy ranks checkpoints."""


def selection_metrics(
    probes: Sequence[str], held_out: Sequence[str] | None = None, *, both: bool = True
) -> dict[str, Mode]:
    """Return the metrics that checkpoints may be ranked by, each with its better end; the first is the default.

    Those of probe datasets come first, as they have labels; then those of `data.holdout`. RankMe is the default of
    these, not the loss: targets move with the network, and the loss falls in a collapse.

    Args:
        probes: Names of the probe datasets.
        held_out: Names of the levels, those of the image included, if images are held out; None if not.
        both: Whether there is a target encoder, so that the online encoder has metrics of its own.
    """
    tails = ("", "_online") if both else ("",)
    order = sorted(PROBES, key=lambda name: name != DEFAULT)
    metrics: dict[str, Mode] = {
        f"probe/{name}/{metric_name(probe, VAL)}{tail}": "max" for name in probes for probe in order for tail in tails
    }
    if held_out is None:
        return metrics
    spectral: dict[str, Mode] = {"rankme": "max", "lidar": "max", "alpha_req_gap": "min"}
    metrics |= {f"val/{name}{tail}": mode for name, mode in spectral.items() for tail in tails}
    metrics["val/loss"] = "min"
    metrics |= {f"val/{level}": "min" for level in held_out}
    return metrics | {f"val/{level}/gain": "max" for level in held_out if not level.endswith("image")}


def level_names(model: Any) -> list[str]:
    """Return the names of the levels whose losses a model logs."""
    names = [level.name for level in getattr(model, "token_levels", ())]
    images = getattr(model, "images", None)
    if images is not None and images.level.compare != "none":
        names += [name for _, name, _ in images.levels]
    return names


def reject_test_metric(key: str, monitor: str | None) -> None:
    """Reject a metric of a test split, and one that is best in the middle.

    Raises:
        ConfigError: If `monitor` is such a metric.
    """
    if monitor in ("val/alpha_req", "val/alpha_req_online"):
        raise ConfigError(
            f"invalid `{key}={monitor}`: is best near 1, neither largest nor smallest; use "
            f"{monitor.replace('alpha_req', 'alpha_req_gap')}, its distance from 1."
        )
    if monitor is None or not monitor.startswith("probe/"):
        return
    head, _, metric = monitor.rpartition("/")
    tail = "_online" if metric.endswith("_online") else ""
    probe = metric.removesuffix(tail).removesuffix("_top5")
    if probe in PROBES:
        better = f"{head}/{metric_name(probe, VAL)}{tail}"
        raise ConfigError(
            f"invalid `{key}={monitor}`: it is measured on the test split, which would no longer tell how good the "
            f"chosen checkpoint is; use {better}, measured on images held out of the training split."
        )


def check_mode(key: str, monitor: str, mode: str, best: Mode) -> None:
    """Reject the wrong end of a metric.

    Args:
        key: Of the mode, for the message.
        monitor: The metric.
        mode: As set.
        best: The metric's better end.

    Raises:
        ConfigError: If the two differ.
    """
    if mode != best:
        raise ConfigError(
            f"invalid `{key}={mode}`: {monitor} is better when {'larger' if best == 'max' else 'smaller'}; set it to "
            f"{best}."
        )
