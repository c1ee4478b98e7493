"""Checkpoints and early stopping by images without labels (`data.holdout`), through the real command line."""

import copy
import csv
import json
from pathlib import Path

import pytest
import torch
import yaml

from hjepa_pl.__main__ import main
from hjepa_pl.callbacks.selection import selection_metrics
from hjepa_pl.cli.checkpoints import CheckpointConfig, checkpoint_callbacks
from hjepa_pl.types import ConfigError
from tests.cli.test_cli import TINY

LEVELS = ["last_c1", "image"]


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hjepa"])
    changed = copy.deepcopy(TINY)
    changed["data"]["init_args"] |= {"probe": [], "holdout": 0.05, "epoch_size": 64}
    changed["model"]["init_args"]["optimizer"] = {"lr": 0.01}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(changed))
    return path


def test_a_run_without_labels_keeps_its_best_checkpoints_and_validates_as_it_trained(config, capsys) -> None:
    words = ["--trainer.max_epochs=4", "--checkpoint.save_top_k=1"]
    assert main(["fit", "--config", str(config), *words]) == 0, capsys.readouterr().err
    run = Path("results/tiny")
    rows = [row for row in csv.DictReader((run / "metrics.csv").open()) if row.get("val/rankme")]
    values = [float(row["val/rankme"]) for row in rows]
    assert len({*values}) == 4
    best = max(range(4), key=lambda epoch: values[epoch])
    assert [p.name for p in (run / "checkpoints").glob("best-*")] == [f"best-epoch{best:04d}.ckpt"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best"]["monitor"] == "val/rankme"
    assert summary["best"]["value"] == pytest.approx(values[best])
    assert "val/rankme" in (run / "logs" / "train.log").read_text()
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["hjepa_data"]["holdout"] == 0.05
    # The same figures from the checkpoint, and no other images when the run is resumed.
    capsys.readouterr()
    assert main(["validate", "--config", str(config), "--ckpt_path=best"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert f"{values[best]:.4f}"[:5] in said
    assert "val/lidar" in said
    more = ["--ckpt_path=last", "--trainer.max_epochs=5", "--data.holdout=0.1"]
    assert main(["fit", "--config", str(config), *words[1:], *more]) == 2
    assert "holdout" in capsys.readouterr().err


def test_early_stopping_by_held_out_images_stops_a_run(config, capsys) -> None:
    stopping = {"monitor": "val/loss", "mode": "min", "patience": 1, "min_delta": 1e6}  # never that much better
    chosen = json.dumps([{"class_path": "EarlyStopping", "init_args": stopping}])
    words = ["--trainer.max_epochs=6", "--checkpoint.monitor=val/last_c1/gain", f"--trainer.callbacks={chosen}"]
    assert main(["fit", "--config", str(config), *words]) == 0, capsys.readouterr().err
    summary = json.loads(Path("results/tiny/summary.json").read_text())
    assert (summary["status"], summary["epochs"]) == ("stopped", 2)
    assert summary["best"]["monitor"] == "val/last_c1/gain"


PROBE = "--data.probe=[{name: digits, max_train: 100, max_test: 100}]"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint.monitor=val/rankm"], "checkpoint.monitor=val/rankm`: must be val/rankme, val/rankme_online, "),
        (["--checkpoint.monitor=val/last_c2"], "val/last_c1, val/image or val/last_c1/gain"),
        (["--checkpoint.monitor=val/alpha_req"], "is best near 1, neither largest nor smallest; use val/alpha_req_gap"),
        (["--checkpoint.monitor=val/rankme", "--data.holdout=null", PROBE], "no images are held out; set data.holdout"),
        (["--checkpoint.monitor=val/loss", "--checkpoint.mode=max"], "checkpoint.mode=max`: val/loss is better when s"),
        (["--checkpoint.mode=min"], "checkpoint.mode=min`: val/rankme is better when larger; set it to max"),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/lidar"],
            "trainer.callbacks.EarlyStopping.mode=min`: val/lidar is better when larger; set it to max",
        ),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/lossy"],
            "trainer.callbacks.EarlyStopping.monitor=val/lossy`: must be train/loss",
        ),
    ],
)
def test_wrong_monitors_and_modes_are_rejected_before_data_is_read(config, capsys, words, said) -> None:
    assert main(["fit", "--config", str(config), *words]) == 2
    assert said in capsys.readouterr().err
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("probes", "held", "config", "expected"),
    [
        (["x"], LEVELS, {}, ("probe/x/linear_val", "max")),  # labels, where there are any
        ([], LEVELS, {}, ("val/rankme", "max")),
        (["x"], LEVELS, {"monitor": "val/lidar"}, ("val/lidar", "max")),
        ([], LEVELS, {"monitor": "val/loss"}, ("val/loss", "min")),
        ([], LEVELS, {"monitor": "val/image", "mode": "min"}, ("val/image", "min")),
        ([], LEVELS, {"monitor": "val/alpha_req_gap_online"}, ("val/alpha_req_gap_online", "min")),
        ([], LEVELS, {"monitor": "val/last_c1/gain"}, ("val/last_c1/gain", "max")),
    ],
)
def test_the_metric_decides_which_end_is_better(tmp_path, probes, held, config, expected) -> None:
    made = checkpoint_callbacks(CheckpointConfig(**config), tmp_path, selection_metrics(probes, held))
    assert [(c.monitor, c.mode) for c in made if c.monitor] == [expected]


def test_without_probes_and_held_out_images_nothing_is_ranked(tmp_path) -> None:
    made = checkpoint_callbacks(CheckpointConfig(), tmp_path, selection_metrics([]))
    assert [c.monitor for c in made] == [None]
    with pytest.raises(ConfigError, match=r"`checkpoint.mode=max`: has no effect without a probe set"):
        checkpoint_callbacks(CheckpointConfig(mode="max"), tmp_path, selection_metrics([]))
