"""The probe callback in real runs."""

import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader

from hjepa_pl.callbacks import CollapseMonitor, ProbeCallback
from hjepa_pl.callbacks.probe_callback import _Bank, _merge
from hjepa_pl.callbacks.probe_table import online_is_better
from hjepa_pl.callbacks.selection import selection_metrics
from hjepa_pl.cli.checkpoints import CheckpointConfig, checkpoint_callbacks
from hjepa_pl.evaluation import evaluate_probes
from hjepa_pl.types import ConfigError
from tests.callbacks.callback_toy import CLASSES, ToyData, ToyModule, collate, fit, images

NAMES = {
    f"probe/quads/{tail}"
    for tail in (
        *(f"{x}{n}" for x in ("knn", "linear", "knn_val", "linear_val", "linear_l2") for n in ("", "_online")),
        "untrained_knn", "untrained_linear", "pixels_knn", "pixels_linear",
    )
}  # fmt: skip


def test_figures_are_those_of_the_offline_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = ProbeCallback()
    trainer, module = fit(tmp_path, [probe])
    assert set(probe.results) == NAMES
    assert probe.evaluated == "target"
    module.eval()
    with torch.no_grad():
        (train_x, train_y), (test_x, test_y) = images(60, 0), images(30, 1)
        online = [module.encode(x).flatten(1) for x in (train_x, test_x)]
    offline = evaluate_probes(online[0], train_y, online[1], test_y, 3)
    assert probe.results["probe/quads/knn_online"] == offline["knn"]
    assert probe.results["probe/quads/linear_online"] == offline["linear"]
    for name in ("knn_val", "linear_val", "linear_l2"):
        assert probe.results[f"probe/quads/{name}_online"] == offline[name]
    pixels = evaluate_probes(train_x.flatten(1), train_y, test_x.flatten(1), test_y, 3)
    assert probe.results["probe/quads/pixels_linear"] == pixels["linear"]
    assert trainer.callback_metrics["probe/quads/knn"].item() == pytest.approx(probe.results["probe/quads/knn"])
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert sum(bool(row["probe/quads/knn"]) for row in rows) == 2
    shown = capsys.readouterr().out
    for word in ("raw pixels", "untrained", "trained (target)", "trained (online)", "Evaluated network: the target"):
        assert word in shown


def test_without_target_the_online_network_is_evaluated(tmp_path: Path) -> None:
    probe = ProbeCallback()
    fit(tmp_path, [probe], ToyModule(target=False), max_epochs=1)
    assert probe.evaluated == "online"
    assert not any(name.endswith("_online") for name in probe.results)


def test_removing_the_watchers_leaves_the_weights_bit_identical(tmp_path: Path) -> None:
    watchers = [ProbeCallback(), CollapseMonitor(every_n_steps=1, window=16, patience=1, min_std=0.99)]
    with pytest.warns(match="Collapse at step"):
        _, watched = fit(tmp_path / "a", watchers)
    _, alone = fit(tmp_path / "b", [])
    for (name, a), b in zip(watched.state_dict().items(), alone.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_incomplete_passes_are_skipped_and_said(tmp_path: Path) -> None:
    probe = ProbeCallback()
    with pytest.warns(match="num_sanity_val_steps: -1"):
        fit(tmp_path, [probe], num_sanity_val_steps=1, max_epochs=1)
    assert set(probe.results) == {name for name in NAMES if "untrained" not in name and "pixels" not in name}
    probe = ProbeCallback()
    with pytest.warns(match=r"limit_val_batches: 1\.0"):
        fit(tmp_path, [probe], limit_val_batches=1, max_epochs=1)
    assert probe.results == {}


def test_resume_keeps_the_baselines(tmp_path: Path) -> None:
    probe = ProbeCallback()
    fit(tmp_path, [probe], max_epochs=1)
    again = ProbeCallback()
    fit(tmp_path, [again], ckpt=str(tmp_path / "checkpoints" / "last.ckpt"), resumed_step=6)
    assert set(again.results) == NAMES
    for name in NAMES:
        if "untrained" in name or "pixels" in name:
            assert again.results[name] == probe.results[name]
    torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_probe_added_at_the_resume_does_not_call_trained_weights_untrained(tmp_path: Path) -> None:
    """Lightning runs its sanity check on the resumed weights too."""
    fit(tmp_path, [], max_epochs=1)
    added = ProbeCallback()
    fit(tmp_path, [added], ckpt=str(tmp_path / "checkpoints" / "last.ckpt"), resumed_step=6)
    assert "probe/quads/knn" in added.results
    assert not any("untrained" in name for name in added.results)


def test_no_probe_set_is_said(tmp_path: Path) -> None:
    with pytest.warns(match="ProbeCallback has no effect: the data has no probe dataset"):
        fit(tmp_path, [ProbeCallback()], data=ToyData(probes=()), limit_val_batches=0, max_epochs=1)


def test_two_sets(tmp_path: Path) -> None:
    probe = ProbeCallback(networks=["online"])
    fit(tmp_path, [probe], data=ToyData(probes=("quads", "more")), max_epochs=1)
    assert {"probe/quads/knn", "probe/more/linear", "probe/more/pixels_knn"} <= set(probe.results)
    assert probe.evaluated == "online"


def test_padded_and_shuffled_rows_are_put_in_order() -> None:
    class Single:
        world_size = 1

    x = torch.arange(5.0)[:, None]
    place = torch.tensor([3, 1, 4, 0, 2, 1, 3])
    bank = _merge(Single(), [_Bank(place, place * 10, {"online": x[place]})])  # type: ignore[arg-type]
    assert bank is not None
    assert bank.image.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(bank.features["online"], x)


@pytest.mark.parametrize("keys", [{"networks": ["teacher"]}, {"networks": []}, {"k": 0}, {"temperature": 0}])
def test_wrong_arguments_are_refused(keys: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(keys))):
        ProbeCallback(**keys)


def test_validate_alone(tmp_path: Path) -> None:
    import lightning.pytorch as pl

    probe = ProbeCallback()
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[probe], enable_progress_bar=False)
    trainer.validate(ToyModule(), datamodule=ToyData(), verbose=False)
    assert "probe/quads/knn" in trainer.callback_metrics


class AdverseTest(ToyData):
    """The toy sets with their test labels moved on by one: a better encoder has a lower test accuracy."""

    def val_dataloader(self) -> list[DataLoader]:
        loaders = super().val_dataloader()
        rows = [(x, (y + 1) % CLASSES, i) for x, y, i in loaders[1].dataset]
        return [loaders[0], DataLoader(rows, batch_size=16, collate_fn=collate)]


def best(folder: Path, data: ToyData) -> tuple[str, list[float]]:
    """Return the best checkpoint of a real run, and the test accuracy of each of its epochs."""
    config = CheckpointConfig(monitor="probe/quads/knn_val", save_top_k=1)
    ranked = [c for c in checkpoint_callbacks(config, folder, selection_metrics(["quads"])) if c.monitor]
    torch.manual_seed(0)
    fit(folder, [ProbeCallback(), *ranked], ToyModule(), data, max_epochs=6, num_sanity_val_steps=0)
    rows = csv.DictReader((folder / "metrics.csv").open())
    return Path(ranked[0].best_model_path).name, [float(r["probe/quads/knn"]) for r in rows if r["probe/quads/knn"]]


def test_the_test_split_does_not_choose_the_best_checkpoint(tmp_path: Path) -> None:
    honest, accuracy = best(tmp_path / "honest", ToyData())
    adverse, adverse_accuracy = best(tmp_path / "adverse", AdverseTest())
    # The test splits disagree on which epoch is best: ranking by them would give two checkpoints.
    assert accuracy.index(max(accuracy)) != adverse_accuracy.index(max(adverse_accuracy))
    assert honest == adverse


def test_another_callback_may_not_choose_by_the_test_split_either(tmp_path: Path) -> None:
    stopping = EarlyStopping(monitor="probe/quads/knn_online", mode="max")
    with pytest.raises(
        ConfigError, match=r"EarlyStopping.monitor=probe/quads/knn_online.*use probe/quads/knn_val_online"
    ):
        fit(tmp_path, [ProbeCallback(), stopping])
    fit(tmp_path, [ProbeCallback(), EarlyStopping(monitor="probe/quads/knn_val_online", mode="max")], max_epochs=1)


class FewImages(ToyData):
    """A bank of four images a class."""

    def __init__(self) -> None:
        super().__init__()
        self.probe_splits[0].size = 4 * CLASSES


def test_a_bank_too_small_for_a_validation_split_says_so_and_ranks_nothing(tmp_path: Path) -> None:
    ranked = [c for c in checkpoint_callbacks(CheckpointConfig(), tmp_path, selection_metrics(["quads"])) if c.monitor]
    probe = ProbeCallback()
    with pytest.warns(match="quads has no validation metric, and ranks no checkpoint: .* max_train") as said:
        fit(tmp_path, [probe, *ranked], data=FewImages())
    assert sum("no validation metric" in str(w.message) for w in said) == 1
    assert not any("_val" in name for name in probe.results)
    assert not ranked[0].best_model_path


def test_which_network_to_take_is_said_by_the_validation_split() -> None:
    by_test = {"probe/a/linear": 50.0, "probe/a/linear_online": 60.0}
    by_test |= {"probe/a/linear_l2": 1.0, "probe/a/linear_l2_online": 9.0}
    assert online_is_better(by_test | {"probe/a/linear_val": 50.0, "probe/a/linear_val_online": 50.5}) == []
    (said,) = online_is_better({"probe/a/linear_val": 50.0, "probe/a/linear_val_online": 52.5})
    assert "by 2.5 points on a/linear_val" in said
