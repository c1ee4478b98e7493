"""Lightning callbacks and the CSV logger: they watch, judge and report, and leave the training as it is."""

from hjepa_pl.callbacks.collapse import CollapseMonitor
from hjepa_pl.callbacks.metrics_csv import MetricsCSV
from hjepa_pl.callbacks.probes import ProbeCallback
from hjepa_pl.callbacks.progress import Progress
from hjepa_pl.callbacks.runlog import RunLog

__all__ = ["CollapseMonitor", "MetricsCSV", "ProbeCallback", "Progress", "RunLog"]
