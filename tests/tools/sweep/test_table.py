"""The table of a sweep: its numbers by hand, its ranking, and runs without a result."""

import json
from math import sqrt
from pathlib import Path

import pytest

from hjepa_pl.__main__ import main
from hjepa_pl.tools.sweep.grid import cells_of
from hjepa_pl.tools.sweep.plan import Plan, Run
from hjepa_pl.tools.sweep.table import store_plan

GRID = {"model.optimizer.lr": ["1e-3", "2e-3", "3e-3"]}
VAL, TEST = "probe/digits/linear_val", "probe/digits/linear"


def write(run: Run, val: float | None, test: float, status: str = "completed") -> None:
    run.folder.mkdir(parents=True)
    metrics = {"train/loss": 1.0, TEST: test, VAL: val}
    costs = {"images_per_second": 100.0 + run.seed, "seconds": 10.0, "device": "a CPU", "git": "abc"}
    (run.folder / "summary.json").write_text(json.dumps({"status": status, "metrics": metrics, **costs}))


@pytest.fixture
def out(tmp_path) -> Path:
    """Three cells and three seeds; cell 2 is best by validation and worst by test, cell 3 lacks a seed."""
    plan = Plan([{}], [], GRID, 3)
    folder = tmp_path / "made-sweep"
    store_plan(plan, folder)
    val = {1: (50.0, 53.0, 47.0), 2: (60.0, 61.0, 59.5), 3: (55.0, 52.0, None)}
    test = {1: (70.0, 71.0, 72.0), 2: (40.0, 41.0, 42.0), 3: (90.0, 91.0, None)}
    for run in plan.runs(folder):
        if val[run.cell.number][run.seed] is not None:
            write(run, val[run.cell.number][run.seed], test[run.cell.number][run.seed])
        else:
            run.folder.mkdir()
            run.log.write_text(
                "hjepa fit x\nhjepa: error: of an earlier start\n"
                "hjepa fit x\nhjepa: error: the disk is full; hjepa fit resumes.\nwandb: 1 run\n"
            )
    return folder


def test_numbers_by_hand_and_ranking_by_validation_only(out, capsys) -> None:
    assert main(["sweep", "--table", str(out)]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == (out / "sweep.md").read_text().strip()
    found = json.loads((out / "sweep.json").read_text())
    assert found["ranked_by"] == VAL
    assert found["test_metrics"] == [TEST]
    assert [cell["cell"] for cell in found["cells"]] == [2, 3, 1]  # by test it were 3, 1, 2
    cells = {cell["cell"]: cell["metrics"] for cell in found["cells"]}
    assert "difference" not in cells[1][VAL]
    assert cells[1][VAL] == {"seeds": 3, "mean": 50.0, "sd": 3.0}
    second = cells[2][VAL]
    mean = (10 + 8 + 12.5) / 3  # 60 - 50, 61 - 53, 59.5 - 47
    deviation = sqrt(((10 - mean) ** 2 + (8 - mean) ** 2 + (12.5 - mean) ** 2) / 2)
    assert second["difference"] == {
        "pairs": 3, "mean": pytest.approx(mean), "standard_error": pytest.approx(deviation / sqrt(3))
    }  # fmt: skip
    assert second["sd"] == pytest.approx(sqrt(((60 - 60.1666667) ** 2 + 0.8333333**2 + 0.6666667**2) / 2), abs=1e-6)
    third = cells[3][VAL]  # its two seeds are 55 - 50 and 52 - 53
    assert third["difference"] == {"pairs": 2, "mean": 2.0, "standard_error": pytest.approx(3.0)}
    assert cells[3]["images_per_second"]["mean"] == 100.5
    assert "| digits/linear_val | validation | 2: lr=2e-3 |     3 |  60.17 | 0.76 | +10.17 +- 1.30 |" in shown
    assert "| digits/linear     | test       | 3: lr=3e-3 |" in shown
    assert "8 of 9 runs finished: 3 cells x 3 seeds." in shown
    assert "Cells are ranked by the mean of digits/linear_val" in shown
    assert "no cell is ranked by them" in shown
    assert "cell 3 (lr=3e-3, seed 2): failed: the disk is full; hjepa fit resumes.\n" in shown  # in no mean
    assert "Device: a CPU. Commit: abc." in shown


def test_with_one_seed_no_error_is_claimed(tmp_path, capsys) -> None:
    plan, folder = Plan([{}], [], GRID, 1), tmp_path / "one"
    store_plan(plan, folder)
    for run, val in zip(plan.runs(folder), (50.0, 52.0, None), strict=True):  # the last one is not a number
        write(run, val, 1.0, "diverged" if val is None else "stopped")
    assert main(["sweep", "--table", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "| validation | 2: lr=2e-3 |     1 |  52.00 |  - |        +2.00 |" in shown
    assert "+-" not in "".join(line for line in shown.splitlines() if line.startswith("|"))
    assert "With one seed no error is claimed." in shown
    assert "cell 1 (lr=1e-3, seed 0): stopped (included in the means)" in shown
    assert "cell 3 (lr=3e-3, seed 0): diverged (included in the means)" in shown
    cells = json.loads((folder / "sweep.json").read_text())["cells"]
    assert [cell["cell"] for cell in cells] == [2, 1, 3]
    assert VAL not in cells[2]["metrics"]


def test_without_a_probe_set_nothing_is_ranked(tmp_path, capsys) -> None:
    plan, folder = Plan([{}], ["--data.probe=[]"], {}, 2), tmp_path / "bare"
    store_plan(plan, folder)
    for run in plan.runs(folder):
        run.folder.mkdir()
        (run.folder / "summary.json").write_text(
            json.dumps({"status": "completed", "metrics": {}, "images_per_second": 9.0, "seconds": 1.0})
        )
    assert main(["sweep", "--table", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert (
        "The runs have no validation metric to rank by, so the cells are not ranked; add a set to data.probe (with "
        "labels), or set data.holdout (without)." in shown
    )
    assert "| images_per_second |       | 1: all |     2 | 9.00 | 0.00 |            - |" in shown
    assert cells_of({})[0].words == []


def held_out(folder: Path, *, probe: bool) -> None:
    """Write a sweep with `data.holdout`: cell 3 has the highest RankMe and loss, cell 1 the best probe, if any."""
    plan = Plan([{}], [], GRID, 1)
    store_plan(plan, folder)
    for run in plan.runs(folder):
        n = run.cell.number
        run.folder.mkdir()
        metrics = {"train/loss": 1.0, "val/loss": float(n), "val/rankme": 10.0 * n, "val/rankme_online": 9.0 * n}
        metrics |= {"val/alpha_req_gap": 0.5 / n, "val/alpha_req": 1.0, "val/lidar": None, "val/cell1/gain": 3.0}
        metrics |= {VAL: 90.0 - n} if probe else {}
        costs = {"images_per_second": 9.0, "seconds": 1.0}
        (run.folder / "summary.json").write_text(json.dumps({"status": "completed", "metrics": metrics, **costs}))


def test_without_labels_cells_are_ranked_by_the_rank_of_held_out_images(tmp_path, capsys) -> None:
    held_out(tmp_path, probe=False)
    assert main(["sweep", "--table", str(tmp_path)]) == 0
    shown, found = capsys.readouterr().out, json.loads((tmp_path / "sweep.json").read_text())
    assert found["ranked_by"] == "val/rankme"
    assert [cell["cell"] for cell in found["cells"]] == [3, 2, 1]
    assert found["validation_metrics"] == ["val/rankme", "val/rankme_online", "val/alpha_req_gap", "val/loss"]
    assert found["lower_is_better"] == ["val/alpha_req_gap", "val/loss"]
    assert set(found["cells"][0]["metrics"]) == {*found["validation_metrics"], "images_per_second", "seconds"}
    assert "| val/loss (lower is better)          | validation | 3: lr=3e-3 |" in shown
    assert "| val/rankme                          | validation | 3: lr=3e-3 |" in shown
    assert (
        "Cells are ranked by the mean of val/rankme, which is measured without labels, on held-out images: "
        "comparable only between equal encoders and data.\n" in shown
    )
    assert "add a set" not in shown


def test_a_probe_ranks_before_metrics_without_labels(tmp_path, capsys) -> None:
    held_out(tmp_path, probe=True)
    assert main(["sweep", "--table", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert found["ranked_by"] == VAL
    assert [cell["cell"] for cell in found["cells"]] == [1, 2, 3]
    assert "| val/rankme " in capsys.readouterr().out
