"""`hjepa sweep` on real runs: two cells and two seeds, killed in the middle, resumed; a failure and Ctrl-C."""

import contextlib
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from hjepa_pl.__main__ import main
from hjepa_pl.tools.sweep.runner import locked
from hjepa_pl.types import ConfigError
from tests.cli.test_cli import TINY

pytestmark = pytest.mark.slow  # a dozen processes, each with its imports
EPOCHS = 8
LRS = ("1e-3", "2e-2")
GRID = [f"--grid=model.optimizer.lr={','.join(LRS)}"]
SWEEP = ["sweep", "tiny.yaml", "--seeds", "2", *GRID, "--out=out"]


def wait_for(path: Path, alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 900
    while not path.exists():
        assert alive(), "ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Swept(NamedTuple):
    """A sweep that was killed in its first run, and then run to its end."""

    folder: Path
    said: str
    log: str
    """Of the first run, when it was killed."""


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["hjepa"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tree: Any = yaml.safe_load(yaml.safe_dump(TINY))
    tree["trainer"]["max_epochs"] = EPOCHS
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Swept:
    folder = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as monkeypatch:
        prepare(folder, monkeypatch)
        process = subprocess.Popen([sys.executable, "-m", "hjepa_pl", *SWEEP], stdout=subprocess.DEVNULL)
        first = folder / "out" / "1_lr=1e-3_seed0"
        wait_for(first / "checkpoints" / "last.ckpt", lambda: process.poll() is None)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for _ in range(100):  # its run notices within half a second
            if "the sweep of this run was killed" in (log := first.with_name(f"{first.name}.log").read_text()):
                break
            time.sleep(0.1)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert main([*SWEEP, "--jobs=4"]) == 0
        return Swept(folder, said.getvalue(), log)


def summary(swept: Swept, cell: int, seed: int) -> dict[str, Any]:
    path = swept.folder / "out" / f"{cell}_lr={LRS[cell - 1]}_seed{seed}" / "summary.json"
    return dict(json.loads(path.read_text()))


def test_a_killed_sweep_ends_its_run_and_goes_on_exactly(swept, tmp_path, monkeypatch) -> None:
    assert "the sweep of this run was killed" in swept.log
    assert "4 runs (2 cells x 2 seeds) in out; 4 to do." in swept.said
    assert "resuming 1 of 4: lr=1e-3, seed 0" in swept.said
    assert "running 4 of 4: lr=2e-2, seed 1" in swept.said.split("[1/4]")[0]  # four at once
    prepare(tmp_path, monkeypatch)
    for cell, seed in ((1, 0), (2, 1)):  # the run that was killed, and the one that differs from it in all
        words = [f"--model.optimizer.lr={LRS[cell - 1]}", f"--seed_everything={seed}"]
        assert main(["fit", "tiny.yaml", *words]) == 0
        whole, found = json.loads(Path("results/tiny/summary.json").read_text()), summary(swept, cell, seed)
        assert found["metrics"] == whole["metrics"]
        assert (found["steps"], found["seed"], found["status"]) == (4 * EPOCHS, seed, "completed")


def test_the_table_has_the_statistics_of_the_runs(swept) -> None:
    found = json.loads((swept.folder / "out/sweep.json").read_text())
    assert (swept.folder / "out/sweep.md").read_text().strip() in swept.said
    runs = {(c, s): summary(swept, c, s) for c in (1, 2) for s in (0, 1)}
    probes = {name for name in runs[1, 0]["metrics"] if name.startswith("probe/")}
    assert len(probes) > 10
    for cell in found["cells"]:
        assert set(cell["metrics"]) == probes | {"images_per_second", "seconds"}
        for name, shown in cell["metrics"].items():
            of = {key: run["metrics"].get(name, run.get(name)) for key, run in runs.items()}
            mine = [of[cell["cell"], seed] for seed in (0, 1)]
            assert shown["seeds"] == 2
            assert shown["mean"] == pytest.approx(sum(mine) / 2)
            assert shown["sd"] == pytest.approx(abs(mine[0] - mine[1]) / 2**0.5)
            if cell["cell"] == 2:
                apart = [of[2, seed] - of[1, seed] for seed in (0, 1)]
                assert shown["difference"]["mean"] == pytest.approx(sum(apart) / 2)
                assert shown["difference"]["standard_error"] == pytest.approx(abs(apart[0] - apart[1]) / 2)
    val = {c: statistics.fmean(runs[c, s]["metrics"]["probe/digits/linear_val"] for s in (0, 1)) for c in (1, 2)}
    assert [cell["cell"] for cell in found["cells"]] == sorted(val, key=lambda c: -val[c])


def test_finished_runs_are_not_run_again_and_another_sweep_is_rejected(swept, monkeypatch, capsys) -> None:
    prepare(swept.folder, monkeypatch)
    assert main(SWEEP) == 0
    assert "0 to do." in capsys.readouterr().out
    out = "invalid `--out=out`: it holds another sweep (its "
    assert main([*SWEEP, "--model.ema.momentum=0.9"]) == 2
    assert f"{out}keys differ)" in capsys.readouterr().err
    assert main(["sweep", "tiny.yaml", "--grid=model.optimizer.lr=1e-3,3e-3", "--out=out"]) == 2
    assert f"{out}grid differ)" in capsys.readouterr().err
    Path("tiny.yaml").write_text(Path("tiny.yaml").read_text().replace("batch_size: 32", "batch_size: 16"))
    assert main(SWEEP) == 2
    assert f"{out}config differ)" in capsys.readouterr().err


def test_one_sweep_works_in_a_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hjepa_pl.tools.sweep.runner._PATIENCE", 0.1)
    with (
        locked(tmp_path),
        pytest.raises(ConfigError, match=r"another sweep works in .*; wait for its end, or set --out"),
        locked(tmp_path),
    ):
        pass
