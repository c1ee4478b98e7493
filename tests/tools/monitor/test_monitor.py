"""`hjepa monitor` on the files of a real run, while it trains and after; and on files that are none."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest

from hjepa_pl.__main__ import main
from hjepa_pl.callbacks import CollapseMonitor, ProbeCallback, RunSummary, TrainLog
from hjepa_pl.tools.monitor.marks import bar, curve
from hjepa_pl.tools.monitor.run_files import RunFiles
from tests.callbacks.callback_toy import ToyModule, fit


class Watching(pl.Callback):
    """Runs `hjepa monitor --once` from within the run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, {}

    def look(self, moment: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "80")
            self.seen[moment] = shown(self.folder)

    def on_sanity_check_start(self, trainer, pl_module) -> None:
        self.look("start")

    def on_sanity_check_end(self, trainer, pl_module) -> None:
        self.look("sanity check")

    def on_train_start(self, trainer, pl_module) -> None:
        self.look("first step")

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == 8:
            self.look("step 8")

    def on_validation_start(self, trainer, pl_module) -> None:
        self.look("validation")


def shown(*folders: Path | str) -> str:
    """Return what the command prints, in this process."""
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["monitor", *map(str, folders)]) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("results") / "toy"
    log = TrainLog(str(folder))
    watching = Watching(folder)
    monitor = CollapseMonitor(every_n_steps=2, window=16)
    fit(folder, [log, RunSummary(str(folder), log), ProbeCallback(), monitor, watching])
    return folder, watching.seen


def test_a_run_is_shown_while_it_trains(toy_run) -> None:
    folder, seen = toy_run
    assert "toy: starting" in seen["start"]
    assert "waiting for the first logged step" in seen["start"]
    assert "toy: first validation" in seen["sanity check"]
    begun = seen["first step"]
    assert "toy: training" in begun
    assert "epoch 1/2  step 0/12  0 %" in begun
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    baselines = {k: v for k, v in summary(folder)["metrics"].items() if "/pixels_" in k or "/untrained_" in k}
    assert len(baselines) == 4
    cells = [f"{baselines[f'probe/quads/{kind}_knn']:.1f}" for kind in ("untrained", "pixels")]
    assert re.search(rf"quads knn +- +- +- +{cells[0]} +{cells[1]}", begun)
    later = seen["step 8"]
    assert re.search(r"epoch 2/2  step 8/12  67 %  [█░]+  0:00:0\d left", later)
    assert re.search(r"\d images/s   peak [\d.]+ [MG]iB ", later)
    loss = next(float(row["train/loss"]) for row in rows if row["step"] == "5")  # the last that is written
    assert re.search(rf"loss +{re.escape(f'{loss:.4g}')} [▁▂▃▄▅▆▇█]{{3}} ", later)
    assert re.search(r"effective rank[^a-z]+\n. last_c1 +[\d.]+ [▁▂▃▄▅▆▇█]+ ", later)
    measured = next(row for row in rows if row["probe/quads/linear"])
    test, valid = (float(measured[f"probe/quads/linear{end}"]) for end in ("", "_val"))
    assert re.search(rf"quads linear +{test:.1f} +[\d.]+ +{valid:.1f} +[\d.]+ +[\d.]+ ", later)
    assert "written 0 s ago" in later
    assert "  epoch 2/2  step 8/12  loss" in later  # the log
    assert "toy: validation" in seen["validation"]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_finished_run_has_its_end(toy_run) -> None:
    folder, _ = toy_run
    said = shown(folder)
    assert "toy: completed" in said
    assert "step 12 in 0:00:0" in said
    assert f"{summary(folder)['images_per_second']:.1f} images/s" in said
    assert "left" not in said.split("log ")[0]


def test_a_failed_run_says_why_and_a_resumed_one_is_not_ended(tmp_path) -> None:
    log = TrainLog(str(tmp_path))
    with pytest.raises(RuntimeError, match="out of"):
        fit(tmp_path, [log, RunSummary(str(tmp_path), log)], ToyModule(fail_at=5))
    assert ": failed" in shown(tmp_path)
    assert "! RuntimeError: out of paper" in shown(tmp_path)
    status = tmp_path / "logs/status.json"
    os.utime(status, (time.time() + 9, time.time() + 9))  # as the resumed run writes it
    assert ": training" in shown(tmp_path)
    assert re.search(r"step 4/12  33 %", shown(tmp_path))


@pytest.mark.parametrize("width", [50, 80, 119, 160])
def test_no_line_is_wider_than_the_terminal(toy_run, monkeypatch, width) -> None:
    folder, _ = toy_run
    monkeypatch.setenv("COLUMNS", str(width))
    alone, three = shown(folder), shown(folder, f"{folder}/", f"{folder}/.")
    for line in (alone + three).splitlines():
        assert len(line) <= width
    beside = [line.count("toy: completed") for line in three.splitlines() if "toy: completed" in line]
    assert beside == ([2, 1] if width >= 120 else [1, 1, 1])


def test_a_terminal_without_unicode_gets_none(toy_run) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "hjepa_pl", "monitor", str(toy_run[0]), "--once"],
        capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"}, check=True,
    )  # fmt: skip
    assert b"toy: completed" in said.stdout
    assert said.stdout.isascii()


def test_neither_torch_nor_lightning_is_imported(toy_run) -> None:
    code = f"""
import sys
from hjepa_pl.__main__ import main
assert main(["monitor", {str(toy_run[0])!r}]) == 0
heavy = {{"torch", "lightning", "numpy", "yaml", "sklearn", "timm"}} & set(sys.modules)
assert not heavy, heavy
assert len(sys.modules) < 500, len(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a pseudo-terminal")
@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "Ctrl-C"])
def test_on_a_terminal_it_goes_on_until_a_key(toy_run, key) -> None:
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()

    def controlled() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests that run in the background ignore it

    process = subprocess.Popen(
        [sys.executable, "-m", "hjepa_pl", "monitor", str(toy_run[0])],
        stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True, start_new_session=True,
        env=os.environ | {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"},
        preexec_fn=controlled,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while b"toy: completed" not in seen:
        seen += os.read(ours, 4096)
    time.sleep(0.3)
    assert process.poll() is None  # it waits
    os.write(ours, key)
    end = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < end:
        try:
            seen += os.read(ours, 4096)
        except OSError:  # closed
            break
    assert process.wait(timeout=20) == 0
    os.close(ours)
    assert b"Traceback" not in seen


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is no run in results/ here; name the folder of one"),
        (["nowhere"], "nowhere: there is no such folder."),
        (["empty"], "empty holds no run (no config.yaml, metrics.csv or logs/train.log)."),
        (["file.txt"], "file.txt: is a file; give the folder of the run."),
        (["several"], "several holds several runs; name some of them, such as several/a."),
        (["--live"], "unknown key --live; the only one is --once."),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys, words, said) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file.txt").touch()
    Path("several/a").mkdir(parents=True)
    Path("several/a/config.yaml").touch()
    assert main(["monitor", *words]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"hjepa monitor: error: {said}")
    assert err.count("\n") == 1


def test_a_run_is_found_by_its_name_and_the_newest_without_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("young", "old")):
        Path("results", name).mkdir(parents=True)
        Path("results", name, "metrics.csv").write_text("step,train/loss\n")
        os.utime(Path("results", name, "metrics.csv"), (1e9 - age, 1e9 - age))
    assert " young: " in shown()
    assert " old: " in shown("old")
    assert main(["monitor", "ol"]) == 2


def write(folder: Path, table: str) -> RunFiles:
    (folder / "metrics.csv").write_text(table)
    run = RunFiles(folder)
    run.read()
    return run


def test_a_table_that_is_being_written_or_was_changed(tmp_path) -> None:
    run = write(tmp_path, "step,train/loss,train/image\n1,0.5,\n3,nan,2\n5,0.2")
    assert run.metrics["train/image"] == [(3, 2.0)]
    assert [step for step, _ in run.metrics["train/loss"]] == [1, 3]  # the last line has no end yet
    assert "nan" in shown(tmp_path)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("5,1\n")
    run.read()
    assert run.metrics["train/loss"][-1] == (5, 0.25)
    # Columns that came, went, or are of another length than the rows.
    (tmp_path / "metrics.csv").write_text("val/rankme,step,train/loss\n7,1,0.5,99\n8,2\nx,y,z\n\n9,4,0.1\n")
    run.read()
    assert run.metrics == {"val/rankme": [(1, 7.0), (2, 8.0), (4, 9.0)], "train/loss": [(1, 0.5), (4, 0.1)]}
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,2\n")
    run.read()
    assert run.metrics == {}
    assert "! metrics.csv cannot be read: it has no column step." in shown(tmp_path)
    (tmp_path / "metrics.csv").unlink()
    run.read()
    assert run.problem == ""


def test_files_that_are_damaged_are_as_if_missing(tmp_path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/train.log").write_bytes(b"\xff\xfe one line\n")
    (tmp_path / "logs/status.json").write_text('{"step": 3')
    (tmp_path / "summary.json").write_text("[1]")
    said = shown(tmp_path)
    assert ": starting" in said
    assert "waiting for the first logged step" in said
    assert " one line" in said


def test_curves_and_bars() -> None:
    assert curve([3, float("nan"), 1, 2], 3) == "█▁▅"
    assert curve(list(range(800)), 8) == "▁▂▃▄▅▆▇█"
    assert curve([], 5) == curve([float("inf")], 5) == curve([1], 0) == ""
    assert curve([0, 1], 9, ascii_only=True) == "_#"
    assert (bar(-1, 3), bar(2, 3), bar(0.5, 4, ascii_only=True)) == ("░░░", "███", "##..")
