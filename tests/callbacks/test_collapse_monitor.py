"""The collapse monitor in real runs."""

import csv
import warnings
from pathlib import Path

import pytest
import torch

from hjepa_pl.callbacks import CollapseMonitor
from hjepa_pl.callbacks.collapse_monitor import _FIXES
from hjepa_pl.types import ConfigError, LevelState, ViewBatch
from tests.callbacks.callback_toy import ToyData, ToyModule, fit

QUICK = {"every_n_steps": 3, "window": 64, "patience": 2}


def test_living_code_is_green_and_logged_off_the_logging_steps(tmp_path: Path) -> None:
    monitor = CollapseMonitor(**QUICK)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Collapse")
        trainer, _ = fit(tmp_path, [monitor], log_every_n_steps=4)
    assert monitor.status == "green"
    assert set(monitor.metrics) == {
        "collapse/rank", "collapse/spread",
        *(f"collapse/last_c1/{x}" for x in ("std", "position_share", "image_share", "gain", "rank")),
        *(f"collapse/last_c1/power_{part}" for part in ("constant", "position", "image", "local")),
    }  # fmt: skip
    parts = [value for name, value in monitor.metrics.items() if "/power_" in name]
    assert sum(parts) == pytest.approx(1, abs=1e-4)
    assert monitor.metrics["collapse/last_c1/power_local"] > 0.2
    assert monitor.metrics["collapse/last_c1/std"] > 0.2
    assert trainer.callback_metrics["collapse/last_c1/gain"].item() == pytest.approx(
        monitor.metrics["collapse/last_c1/gain"]
    )
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [int(r["step"]) for r in rows if r["collapse/last_c1/std"]] == [2, 5, 8, 11]
    assert [int(r["step"]) for r in rows if r["train/loss"]] == [3, 7, 11]


def test_position_only_collapse_turns_red_and_warns_once(tmp_path: Path) -> None:
    monitor = CollapseMonitor(**QUICK)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, _ = fit(tmp_path, [monitor], ToyModule("position"))
    said = [str(w.message) for w in caught if "Collapse at step" in str(w.message)]
    assert len(said) == 1
    assert "last_c1" in said[0]
    assert "collapse.max_position_share 0.95" in said[0]
    assert "add {kind: sigreg, stream: tokens}, which compares images at one position" in said[0]
    assert "\n" not in said[0]
    assert monitor.status == "red"
    assert monitor.metrics["collapse/last_c1/position_share"] > 0.99
    assert trainer.global_step == 12


def test_tokens_of_an_image_that_become_one_vector_turn_red_with_a_fix_of_their_own(tmp_path: Path) -> None:
    monitor = CollapseMonitor(**QUICK)
    with pytest.warns(match="Collapse at step"):
        fit(tmp_path, [monitor], ToyModule("image"))
    assert monitor.metrics["collapse/last_c1/image_share"] > 0.9
    assert monitor.metrics["collapse/last_c1/power_image"] > 5 * monitor.metrics["collapse/last_c1/power_local"]
    # The other metrics find nothing wrong with it: images still differ, in many directions.
    assert monitor.metrics["collapse/last_c1/std"] > 0.2
    assert monitor.metrics["collapse/last_c1/position_share"] < 0.5
    assert monitor.metrics["collapse/last_c1/rank"] > 2
    assert "last_c1: " in monitor.message
    assert "above collapse.max_image_share 0.7" in monitor.message
    assert "add {cell: image} to model.levels or, if it is there, lower the weight of" in monitor.message
    assert "sigreg" not in monitor.message


def test_only_the_finest_levels_are_asked_for_what_is_local(tmp_path: Path) -> None:
    class Levels(ToyModule):
        def training_step(self, batch: ViewBatch, batch_idx: int) -> dict:
            out = super().training_step(batch, batch_idx)
            fine = out["levels"]["last_c1"].target_map
            coarse = fine.unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)
            for name, target_map in (("last_c2", coarse), ("last_c4", coarse.mean(1, keepdim=True))):
                cells = torch.zeros(len(fine), 1, dtype=torch.long)
                out["levels"][name] = LevelState(target_map[:, :1], target_map[:, :1], cells, target_map)
            return out

    monitor = CollapseMonitor(**QUICK)
    fit(tmp_path, [monitor], Levels())
    assert [name for name in monitor.metrics if name.endswith("image_share")] == ["collapse/last_c1/image_share"]
    assert {"collapse/last_c2/std", "collapse/last_c4/std"} <= set(monitor.metrics)


def test_each_failure_names_its_own_fix(tmp_path: Path) -> None:
    monitor = CollapseMonitor(every_n_steps=3, window=128, patience=1, min_std=0.99, min_rank=16)
    with pytest.warns(match="Collapse at step"):
        fit(tmp_path, [monitor], ToyModule("image"))
    for words in ("below collapse.min_std 0.99", "below collapse.min_rank 16", "above collapse.max_image_share 0.7"):
        assert words in monitor.message
    assert len(set(_FIXES.values())) == len(_FIXES)
    assert sum(fix in monitor.message for fix in _FIXES.values()) == 3


def test_stop_warns_first_and_stops_if_it_lasts(tmp_path: Path) -> None:
    monitor = CollapseMonitor(action="stop", **QUICK)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, _ = fit(tmp_path, [monitor], ToyModule("position"), max_epochs=50)
    said = [str(w.message) for w in caught if "Collapse at step" in str(w.message)]
    assert [s.split(",")[0] for s in said] == ["Collapse at step 6", "Collapse at step 12"]
    assert said[0].endswith("The run is stopped in 6 steps if this lasts.")
    assert said[1].endswith("The run is stopped.")
    assert trainer.global_step == 12
    assert (monitor.status, monitor.stopped) == ("red", True)


def test_off_measures_nothing(tmp_path: Path) -> None:
    monitor = CollapseMonitor(action="none", **QUICK)
    fit(tmp_path, [monitor], ToyModule("position"))
    assert monitor.metrics == {}
    assert "collapse" not in (tmp_path / "metrics.csv").read_text()


def test_batches_of_one_image_wait_and_accumulation_checks_by_step(tmp_path: Path) -> None:
    monitor = CollapseMonitor(every_n_steps=2, window=16)
    fit(tmp_path, [monitor], data=ToyData(batch=1))
    assert monitor.metrics == {}
    fit(tmp_path, [monitor], accumulate_grad_batches=3, max_epochs=4)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert len([r for r in rows if r["collapse/rank"]]) == 4


def test_strikes_survive_a_resume() -> None:
    monitor = CollapseMonitor()
    monitor._strikes, monitor.status, monitor.message = {"collapse/rank": 2}, "red", "why"
    again = CollapseMonitor()
    again.load_state_dict(monitor.state_dict())
    assert (again._strikes, again.status, again.message) == ({"collapse/rank": 2}, "red", "why")


@pytest.mark.parametrize(
    "keys",
    [{"action": "halt"}, {"every_n_steps": 0}, {"patience": 0}, {"window": 4}, {"min_std": 1.5},
     {"max_position_share": 0}, {"min_spread": 1}, {"max_image_share": 1.2}, {"min_rank": 0.5}],
)  # fmt: skip
def test_wrong_arguments_are_rejected(keys: dict) -> None:
    name, value = next(iter(keys.items()))
    with pytest.raises(ConfigError, match=f"invalid `collapse.{name}={value}`: must be "):
        CollapseMonitor(**keys)


def test_unknown_arguments_are_rejected() -> None:
    with pytest.raises(ConfigError, match="collapse does not accept 'patients'; its keys are action, every_n_steps"):
        CollapseMonitor(patients=3)
