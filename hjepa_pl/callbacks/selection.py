"""Metrics that checkpoints may be ranked by: those of the validation split, never those of the test split."""

from hjepa_pl.evaluation.base import VAL
from hjepa_pl.evaluation.probes import PROBES, metric_name
from hjepa_pl.types import ConfigError

DEFAULT = "linear"
"""The probe whose validation accuracy ranks checkpoints."""


def selection_metrics(probes: list[str]) -> list[str]:
    """Return the metrics of probe datasets that checkpoints may be ranked by; the first is the default."""
    order = sorted(PROBES, key=lambda name: name != DEFAULT)
    return [
        f"probe/{name}/{metric_name(probe, VAL)}{tail}"
        for name in probes
        for probe in order
        for tail in ("", "_online")
    ]


def reject_test_metric(key: str, monitor: str | None) -> None:
    """Reject a metric of a test split.

    Raises:
        ConfigError: If `monitor` is such a metric.
    """
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
