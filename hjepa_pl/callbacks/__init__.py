"""Lightning callbacks and the CSV logger: they evaluate and report, and leave the training as it is."""

from hjepa_pl.callbacks.collapse_monitor import CollapseMonitor
from hjepa_pl.callbacks.held_out import HeldOutMetrics
from hjepa_pl.callbacks.metrics_csv import MetricsCSV
from hjepa_pl.callbacks.probe_callback import ProbeCallback
from hjepa_pl.callbacks.progress_bar import ProgressBar
from hjepa_pl.callbacks.summary import RunSummary
from hjepa_pl.callbacks.train_log import TrainLog

__all__ = ["CollapseMonitor", "HeldOutMetrics", "MetricsCSV", "ProbeCallback", "ProgressBar", "RunSummary", "TrainLog"]
