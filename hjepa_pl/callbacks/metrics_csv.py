"""Logger of `metrics.csv`, one file for a run and its resumes."""

import csv
import os
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.atomic_file import atomic_write


class MetricsCSV(CSVLogger):
    """Write `<directory>/metrics.csv`: one row per step, ordered by step, on disk at once.

    Lightning's logger writes to a version folder and deletes the file of a resumed run. This one keeps the rows before
    the step of the checkpoint and drops the later ones, which the resumed run computes again, so that no step appears
    twice. Losses, probes and collapse metrics of one step share a row.

    Args:
        directory: Folder of the run.
        resumed_step: `global_step` of the checkpoint that the run resumes; None for a new run, which renames an
            earlier file to `metrics.old.csv`.

    Raises:
        ConfigError: If `resumed_step` is negative.
    """

    def __init__(self, directory: str, resumed_step: int | None = None) -> None:
        if resumed_step is not None and resumed_step < 0:
            raise ConfigError(
                f"invalid `resumed_step={resumed_step}`: must be the step of the checkpoint, or None for a new run."
            )
        super().__init__(save_dir=directory, name="", version="")
        self._resumed_step = resumed_step

    @property
    def log_dir(self) -> str:
        """The run's folder, without subfolders for name and version."""
        return self._save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The table; created at first use, on rank zero."""
        if self._experiment is None:
            self._experiment = _Table(Path(self._save_dir) / "metrics.csv", self._resumed_step)  # type: ignore[assignment]
        return self._experiment

    @rank_zero_only
    def log_metrics(  # type: ignore[override]
        self, metrics: dict[str, Tensor | float], step: int | None = None
    ) -> None:
        """Write the metrics of a step.

        Args:
            metrics: Values by name.
            step: The step; None is the last one.
        """
        self.experiment.write({k: float(v) for k, v in metrics.items()}, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Do nothing: the settings are in `config.yaml` and in every checkpoint."""

    @rank_zero_only
    def save(self) -> None:
        """Do nothing: every row is on disk when `log_metrics` returns."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Do nothing: see `save`."""


class _Table:
    """A CSV file with one row per step; the last row can get more values, the header more columns."""

    def __init__(self, path: Path, resumed_step: int | None) -> None:
        self._path = path
        self._names = ["step"]
        self._rows: dict[int, dict[str, Any]] = {}
        self._last_offset = 0
        if path.is_file() and resumed_step is None:
            os.replace(path, path.with_name("metrics.old.csv"))
        elif path.is_file():
            self._read(int(resumed_step or 0))
        self._rewrite()

    def write(self, values: dict[str, float], step: int | None) -> None:
        last = next(reversed(self._rows), -1)
        step = max(last, 0) if step is None else step
        self._rows.setdefault(step, {"step": step}).update(values)
        wider = sorted(values.keys() - set(self._names))
        self._names.extend(wider)
        if wider or step < last or not self._path.is_file():  # someone may have removed it
            self._rows = dict(sorted(self._rows.items()))
            self._rewrite()
        else:
            self._append(self._last_offset if step == last else self._path.stat().st_size)

    def _read(self, limit: int) -> None:
        """Read the rows before step `limit`."""
        # A killed run may have left a truncated last line.
        lines = [line for line in self._path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        reader = csv.DictReader(lines)
        self._names = list(reader.fieldnames or self._names)
        for row in reader:
            if int(row["step"]) < limit:
                self._rows[int(row["step"])] = row

    def _append(self, offset: int) -> None:
        """Write the last row at an offset of the file, in place of what follows it."""
        with self._path.open("r+", newline="") as file:
            file.truncate(offset)
            file.seek(offset)
            csv.DictWriter(file, self._names, lineterminator="\n").writerow(next(reversed(self._rows.values())))
        self._last_offset = offset

    def _rewrite(self) -> None:
        """Write the whole table anew, atomically."""
        with atomic_write(self._path, sync=False) as file:
            writer = csv.DictWriter(file, self._names, lineterminator="\n")
            writer.writeheader()
            rows = list(self._rows.values())
            writer.writerows(rows[:-1])
            file.flush()
            self._last_offset = file.tell()
            writer.writerows(rows[-1:])
