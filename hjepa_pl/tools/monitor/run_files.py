"""What the files of a run say: metrics.csv, logs/status.json, logs/train.log and summary.json."""

import csv
import json
import math
import time
from pathlib import Path
from typing import Any

History = list[tuple[int, float]]
"""Steps and values of a metric."""
_LOG_BYTES = 8192
"""Read from the end of the log."""


class RunFiles:
    """The files of a run, read again only where they have changed.

    A run may be writing them: a last line without its end is left out, and a file that is missing is empty.

    Args:
        folder: Folder of the run.

    Attributes:
        metrics: History of every metric, by name, in the order of the columns.
        status: The object of logs/status.json; empty without one.
        summary: The object of summary.json if the run has ended, else empty.
        log: Last lines of logs/train.log.
        problem: What is wrong with metrics.csv, in a sentence; or an empty string.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics: dict[str, History] = {}
        self.status: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.log: list[str] = []
        self.problem = ""
        self._stamps: dict[str, tuple[float, int]] = {}

    def read(self) -> None:
        """Read what has changed."""
        if self._changed("metrics.csv"):
            self._read_metrics()
        if self._changed("logs/status.json"):
            self.status = self._json("logs/status.json")
        if self._changed("logs/train.log"):
            self._read_log()
        if self._changed("summary.json"):
            self.summary = self._json("summary.json")

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name or str(self.folder.absolute().name)

    @property
    def ended(self) -> bool:
        """True if the run has ended and was not resumed since."""
        written = self._stamps.get("summary.json", (0.0, -1))[0]
        return bool(self.summary) and written >= self._stamps.get("logs/status.json", (0.0, -1))[0]

    @property
    def age(self) -> float | None:
        """Seconds since the run wrote something; None before."""
        times = [written for written, size in self._stamps.values() if size >= 0]
        return max(0.0, time.time() - max(times)) if times else None

    def last(self, name: str) -> float | None:
        """Return the last value of a metric; None without one."""
        found = self.metrics.get(name)
        return found[-1][1] if found else None

    @property
    def baselines(self) -> dict[str, float]:
        """The probes' accuracies on raw pixels and the untrained encoder, by the names of their metrics."""
        found = dict(self.summary.get("metrics") or {}) | dict(self.status.get("baselines") or {})
        return {
            name: float(value)
            for name, value in found.items()
            if ("/untrained_" in name or "/pixels_" in name) and isinstance(value, int | float)
        }

    def _changed(self, name: str) -> bool:
        """Return whether a file differs from what was read, by its time and size."""
        try:
            found = (self.folder / name).stat()
            stamp = (found.st_mtime, found.st_size)
        except OSError:
            stamp = (0.0, -1)
        changed = self._stamps.get(name) != stamp
        self._stamps[name] = stamp
        return changed

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _read_log(self) -> None:
        try:
            with (self.folder / "logs/train.log").open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - _LOG_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            text = ""
        self.log = [line for line in text.splitlines() if line.strip()][-20:]

    def _read_metrics(self) -> None:
        self.metrics, self.problem = {}, ""
        try:
            text = (self.folder / "metrics.csv").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        rows = csv.reader(lines)
        names = next(rows, [])
        if lines and "step" not in names:
            self.problem = "metrics.csv cannot be read: it has no column step."
            return
        self.metrics = {name: [] for name in names if name != "step"}
        for row in rows:
            values = dict(zip(names, row, strict=False))  # a row may be short or long
            step = _number(values.pop("step", ""))
            if step is None or not math.isfinite(step):
                continue
            for name, text in values.items():
                if (value := _number(text)) is not None:
                    self.metrics[name].append((int(step), value))
        self.metrics = {name: found for name, found in self.metrics.items() if found}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
