"""train.log, summary.json and metrics.csv of real runs: finished, stopped, failed, resumed."""

import csv
import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hjepa_pl.callbacks import CollapseMonitor, MetricsCSV, ProbeCallback, ProgressBar, RunSummary, TrainLog
from hjepa_pl.types import ConfigError
from tests.callbacks.callback_toy import ToyData, ToyModule, fit


def run_files(folder: Path) -> tuple[TrainLog, RunSummary]:
    """Return the callbacks that write train.log and summary.json."""
    log = TrainLog(str(folder))
    return log, RunSummary(str(folder), log)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_completed_run(tmp_path: Path) -> None:
    fit(tmp_path, [*run_files(tmp_path), ProbeCallback(), CollapseMonitor()])
    record = summary(tmp_path)
    assert record["status"] == "completed"
    assert (record["epochs"], record["steps"], record["images"]) == (2, 12, 144)
    assert 0 < record["train_seconds"] < record["seconds"]
    assert record["images_per_second"] == pytest.approx(144 / record["train_seconds"])
    assert {"train/loss", "probe/quads/untrained_linear", "probe/quads/linear"} <= set(record["metrics"])
    assert record["collapse"] == {"status": "green", "message": ""}
    assert record["evaluated"] == "target"
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*"))
    lines = (tmp_path / "logs" / "train.log").read_text().splitlines()
    assert sum("images/s" in line and " left" in line for line in lines) == 6
    for words in (
        "started: 12 steps",
        "before training  probe/quads/",
        "epoch 2/2  step 12/12  loss",
        ", 1 process on ",
        "epoch 2/2 validation  probe/",
    ):
        assert any(words in line for line in lines), words
    assert "completed at step 12" in lines[-1]


def test_the_log_and_the_bar_word_a_step_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, [*run_files(tmp_path), ProgressBar()], enable_progress_bar=True, log_every_n_steps=6)
    bar = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    log = [line for line in (tmp_path / "logs" / "train.log").read_text().splitlines() if "  step " in line]
    assert len(bar) == len(log) == 2
    for shown, written in zip(bar, log, strict=True):
        epoch, speed, *terms = shown.split("  ")
        assert all(part in written for part in (epoch, *terms)), (shown, written)
        assert len(terms) == 2  # loss, last_c1
        for line in (speed, written.rpartition("  ")[2]):
            assert re.fullmatch(r"[\d.]+ images/s, \d:\d\d:\d\d left", line)


def test_the_probe_metrics_of_a_summary_are_those_of_the_callback(tmp_path: Path) -> None:
    probe = ProbeCallback()
    trainer, _ = fit(tmp_path, [*run_files(tmp_path), probe])
    metrics = summary(tmp_path)["metrics"]
    assert {name: value for name, value in metrics.items() if name.startswith("probe/")} == probe.results
    assert metrics["train/loss"] == trainer.callback_metrics["train/loss"].item()


def test_failed_run_leaves_a_summary(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="paper"):
        fit(tmp_path, [*run_files(tmp_path)], ToyModule(fail_at=7))
    record = summary(tmp_path)
    assert (record["status"], record["error"], record["steps"]) == ("failed", "RuntimeError: out of paper", 7)
    assert (tmp_path / "logs" / "train.log").read_text().splitlines()[-1].endswith("RuntimeError: out of paper")
    assert len(table(tmp_path)) > 0


def test_interrupted_run(tmp_path: Path) -> None:
    class Impatient(ToyModule):
        def training_step(self, batch: object, batch_idx: int) -> dict:
            if self.global_step == 3:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)  # type: ignore[arg-type]

    with pytest.raises(SystemExit):
        fit(tmp_path, [*run_files(tmp_path)], Impatient())
    assert summary(tmp_path)["status"] == "interrupted"


def test_stopped_run(tmp_path: Path) -> None:
    guard = CollapseMonitor(action="stop", every_n_steps=1, window=16, patience=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(tmp_path, [guard, *run_files(tmp_path)], ToyModule("position"), log_every_n_steps=1)
    record = summary(tmp_path)
    assert record["status"] == "stopped"
    assert record["collapse"]["status"] == "red"
    assert "last_c1" in record["collapse"]["message"]
    assert "Collapse at step 1, last_c1" in (tmp_path / "logs" / "train.log").read_text()  # the warning before the stop


def test_resume_keeps_rows_log_and_seconds(tmp_path: Path) -> None:
    """The run dies at step 9, after the checkpoint of step 6: rows 7 and 9 are dropped and computed again."""
    parts = [*run_files(tmp_path), ProbeCallback()]
    with pytest.raises(RuntimeError, match="paper"):
        fit(tmp_path, parts, ToyModule(fail_at=9, dropout=0))
    first = table(tmp_path)
    assert [int(r["step"]) for r in first] == [1, 3, 5, 7]
    parts = [*run_files(tmp_path), ProbeCallback(), CollapseMonitor(every_n_steps=2)]
    fit(tmp_path, parts, ToyModule(dropout=0), ckpt=str(tmp_path / "checkpoints" / "last.ckpt"), resumed_step=6)
    rows = table(tmp_path)
    steps = [int(r["step"]) for r in rows]
    assert steps == sorted(set(steps))
    assert [{k: r[k] for k in first[0]} for r in rows[:3]] == first[:3]
    assert [int(r["step"]) for r in rows if r["train/loss"]] == [1, 3, 5, 7, 9, 11]
    # Bit-equal resume: what is computed again is what was there.
    assert [r["train/loss"] for r in rows if r["step"] == "7"] == [first[3]["train/loss"]]
    record = summary(tmp_path)
    assert (record["status"], record["images"], record["steps"]) == ("completed", 144, 12)
    log = (tmp_path / "logs" / "train.log").read_text()
    for words in ("started", "failed at step 9", "resumed at step 6", "completed"):
        assert words in log


def test_csv_new_run_puts_the_old_file_aside(tmp_path: Path) -> None:
    fit(tmp_path, [], max_epochs=1)
    fit(tmp_path, [], max_epochs=2)
    assert [int(r["step"]) for r in table(tmp_path)] == [1, 3, 5, 7, 9, 11]
    assert len((tmp_path / "metrics.old.csv").read_text().splitlines()) == 4


def test_csv_merges_orders_and_survives_half_a_line(tmp_path: Path) -> None:
    logger = MetricsCSV(str(tmp_path))
    logger.log_metrics({"a": 1.0}, 3)
    logger.log_metrics({"a": 2.0}, 7)
    logger.log_metrics({"b": torch.tensor(5.0)}, 7)  # a new column, same step
    logger.log_metrics({"a": 9.0}, 5)  # late
    logger.log_metrics({"a": 3.0}, 9)
    logger.log_metrics({"b": 4.0}, 9)
    expected = "step,a,b\n3,1.0,\n5,9.0,\n7,2.0,5.0\n9,3.0,4.0\n"
    assert (tmp_path / "metrics.csv").read_text() == expected
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1")  # killed in the middle of "11,..."
    again = MetricsCSV(str(tmp_path), resumed_step=8)
    again.log_metrics({"a": 0.5}, 9)
    assert (tmp_path / "metrics.csv").read_text() == "step,a,b\n3,1.0,\n5,9.0,\n7,2.0,5.0\n9,0.5,\n"
    with pytest.raises(ConfigError, match="invalid `resumed_step=-1`: must be the step of the checkpoint"):
        MetricsCSV(str(tmp_path), resumed_step=-1)


def test_time_left_obeys_the_budget(tmp_path: Path) -> None:
    class Budgeted(ToyModule):
        progress = SimpleNamespace(budget=7200.0, seconds=3600.0)

    fit(tmp_path, [*run_files(tmp_path)], Budgeted(), max_epochs=-1, max_time="00:00:00:01")
    log = (tmp_path / "logs" / "train.log").read_text()
    assert "started: 2:00:00, " in log
    assert "step 2  loss" in log
    assert "1:00:00 left" in log


def test_the_log_counts_towards_what_ends_the_run(tmp_path: Path) -> None:
    class Budgeted(ToyModule):
        progress = SimpleNamespace(budget=7200.0, seconds=7199.5)

    fit(tmp_path, [*run_files(tmp_path)], Budgeted(), max_epochs=100_000, max_steps=4)
    log = (tmp_path / "logs" / "train.log").read_text()
    assert "started: 4 steps or 2:00:00, " in log
    assert "step 4/4" in log
    fit(tmp_path, [*run_files(tmp_path)], Budgeted(), max_epochs=100_000, max_time="00:00:00:01")
    log = (tmp_path / "logs" / "train.log").read_text()
    assert "step 2  loss" in log


def test_diverged_figures_are_null_not_broken_json(tmp_path: Path) -> None:
    module = ToyModule(lr=1e30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(tmp_path, [*run_files(tmp_path), ProbeCallback(), CollapseMonitor(every_n_steps=2)], module)
    record = summary(tmp_path)
    assert record["metrics"]["probe/quads/knn"] is None
    assert record["collapse"]["status"] == "red"


def test_accumulation_counts_steps_not_batches(tmp_path: Path) -> None:
    fit(tmp_path, [*run_files(tmp_path)], data=ToyData(steps=7), accumulate_grad_batches=2, log_every_n_steps=1)
    log = (tmp_path / "logs" / "train.log").read_text()
    assert log.count(" left") == 8
    assert "step 8/8" in log
