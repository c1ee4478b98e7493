"""Held-out images without labels (`data.holdout`): never trained on, comparable figures, real Trainer runs."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.callbacks import HeldOutMetrics, MetricsCSV
from hjepa_pl.data.config import DatasetConfig
from hjepa_pl.data.held_images import check_apart
from hjepa_pl.evaluation.collapse import prediction_gain
from hjepa_pl.evaluation.spectra import alpha_req, lidar, rankme
from hjepa_pl.types import CleanBatch, ConfigError, RepeatedViews, ViewBatch

MODEL: dict[str, Any] = {
    "encoder": {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 8, "patch_size": 2, "in_chans": 1},
    "predictor": {"embed_dim": 24, "depth": 1, "num_heads": 2},
    "projector": {"hidden_dim": 32, "out_dim": 16},
}
GRAY = {"gray": 0.0, "jitter": [0.4, 0.4, 0.0, 0.0]}


def make_data(**keys: Any) -> MultiDatasetDataModule:
    defaults = {"datasets": "digits", "batch_size": 32, "views": 2, "epoch_size": 96, "holdout": 0.05}
    return MultiDatasetDataModule(**{**defaults, "augmentation": GRAY, **keys})


def run(folder: Path, data: MultiDatasetDataModule, model: HJEPALightningModule | None = None, **keys: Any):
    """Train for real, by default two epochs of three steps; return the Trainer, the module and the callback."""
    pl.seed_everything(0, verbose=False)
    model, metrics = model or HJEPALightningModule(**MODEL), HeldOutMetrics()
    callbacks = [metrics, *keys.pop("callbacks", [])]
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=MetricsCSV(str(folder)), enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks, default_root_dir=str(folder),
        **{"max_epochs": 2, "log_every_n_steps": 1, "enable_checkpointing": False, **keys},
    )  # fmt: skip
    trainer.fit(model, data)
    return trainer, model, metrics


def figures(trainer: pl.Trainer, model: HJEPALightningModule, data: MultiDatasetDataModule) -> dict[str, float]:
    """Validate as `hjepa validate` does."""
    merged: dict[str, float] = {}
    for of_loader in trainer.validate(model, data, verbose=False):
        merged |= of_loader
    return merged


def ids(images: Any) -> list[int]:
    """The gray of each image of a set, by which the tests know it."""
    return images.images[:, 0, 0, 0].tolist()


class Seen(pl.Callback):
    """Keeps what is trained on and what is validated."""

    def __init__(self) -> None:
        self.trained: list[ViewBatch] = []
        self.validated: list[list[Any]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.trained.append(batch)

    def on_validation_epoch_start(self, trainer, module) -> None:
        self.validated.append([])

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.validated[-1].append((batch, outputs, dataloader_idx))


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    folder, seen = tmp_path_factory.mktemp("run"), Seen()
    data = make_data(probe=[{"name": "digits", "max_train": 100, "max_test": 100}])
    return *run(folder, data, callbacks=[seen], num_sanity_val_steps=0), seen, data, folder


def test_a_validation_logs_every_metric_and_they_are_those_of_their_definition(digits_run) -> None:
    trainer, model, metrics, seen, _, folder = digits_run
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    names = ["rankme", "alpha_req", "alpha_req_gap", "lidar"]
    names = [f"{name}{tail}" for name in names for tail in ("", "_online")]
    levels = [level.name for level in model.token_levels]
    assert len(levels) == 2
    expected = ["loss", "image", "sigreg_image", *levels, *(f"{level}/gain" for level in levels), *names]
    assert {f"val/{name}" for name in expected} <= {*logged}
    assert {name: logged[name] for name in metrics.results} == pytest.approx(metrics.results, rel=1e-6)
    last = seen.validated[-1]
    clean = [o for b, o, i in last if isinstance(b, CleanBatch) and i >= 2]
    views = [o for b, o, i in last if isinstance(b, RepeatedViews)]
    for network, tail in (("target", ""), ("online", "_online")):
        x = torch.cat([o[network] for o in clean])
        assert x.shape == (72, 24)  # 0.05 of 1438
        assert logged[f"val/rankme{tail}"] == pytest.approx(rankme(x), rel=1e-5)
        assert logged[f"val/alpha_req{tail}"] == pytest.approx(alpha_req(x), rel=1e-5)
        assert logged[f"val/alpha_req_gap{tail}"] == pytest.approx(abs(alpha_req(x) - 1), rel=1e-5)
        several = torch.cat([o[network] for o in views])
        assert several.shape == (72, 8, 24)
        assert logged[f"val/lidar{tail}"] == pytest.approx(lidar(several), rel=1e-5)
    held = [(b, o) for b, o, _ in last if isinstance(b, ViewBatch)]
    assert [len(b.label) for b, _ in held] == [24, 24, 24]  # equal batches of at most 32
    model.eval()
    with torch.no_grad():
        losses = [float(model.compute(b)[0]) for b, _ in held]
    assert logged["val/loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    for level in levels:
        gains = [float(prediction_gain(o["levels"][level])) for _, o in held]
        assert logged[f"val/{level}/gain"] == pytest.approx(sum(gains) / 3, abs=1e-6)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert sum(bool(row.get("val/rankme")) for row in rows) == 2


def test_the_figures_of_a_network_are_the_same_each_time_and_change_with_it(digits_run) -> None:
    trainer, model, _, _, data, _ = digits_run
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again, other = (figures(trainer, model, data) for _ in range(2))
    assert again == other
    assert again["val/loss"] == pytest.approx(float(trainer.logged_metrics["val/loss"]))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name  # batch norm's averages included
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert figures(trainer, model, data)["val/loss"] != again["val/loss"]
    model.load_state_dict(before)


def test_the_views_and_masks_are_the_same_in_every_validation(digits_run) -> None:
    seen = digits_run[3]
    first, last = (
        [b for b, _, _ in v if not isinstance(b, CleanBatch)] for v in (seen.validated[0], seen.validated[1])
    )
    assert len(first) == len(last) == 6
    for one, two in zip(first, last, strict=True):
        for a, b in zip(one.views, two.views, strict=True):
            assert torch.equal(a, b)
        if isinstance(one, ViewBatch):
            assert one.counters.epoch == two.counters.epoch
            assert one.counters.step == two.counters.step
            assert one.counters.step > 10**6  # which no training step has


def _photos(root: Path, count: int) -> Path:
    """Images without labels, each of its own gray."""
    root.mkdir()
    for i in range(count):
        Image.fromarray(np.full((8, 8), i, dtype=np.uint8)).save(root / f"{i:03d}.png")
    return root


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_images_of_a_folder_without_labels_are_never_trained_on(tmp_path, seed) -> None:
    seen = Seen()
    photos = _photos(tmp_path / "photos", 200)
    data = make_data(
        datasets=[{"name": "folder", "root": str(photos)}], augmentation="none", views=1, holdout=0.2, seed=seed,
        epoch_size=None, batch_size=20, num_workers=0, mean=[0.0], std=[1.0],
    )  # fmt: skip
    model = HJEPALightningModule(**{k: v for k, v in MODEL.items() if k != "projector"}, levels=[{"cell": 1}])
    run(tmp_path, data, model, callbacks=[seen], max_epochs=3)

    def grays(views: list[torch.Tensor]) -> list[int]:
        return (torch.cat(views)[:, 0, 0, 0] * 255).round().int().tolist()

    trained = grays([b.views[0] for b in seen.trained])
    clean = grays([b.image for b, _, _ in seen.validated[-1] if isinstance(b, CleanBatch)])
    viewed = grays([b.views[0] for b, _, _ in seen.validated[-1] if isinstance(b, ViewBatch)])
    assert len(trained) == 3 * 160
    assert sorted(clean) == sorted(viewed) == sorted({*clean})
    assert len(clean) == 40
    assert {*trained} | {*clean} == set(range(200))
    assert not {*trained} & {*clean}
    assert not any(isinstance(b, RepeatedViews) for b, _, _ in seen.validated[-1])  # all views would be equal
    again = make_data(datasets=data.datasets, holdout=0.2, seed=seed, img_size=8, in_chans=1)  # as when it resumes
    again.setup("fit")
    assert ids(again.sets.held[0]) == ids(data.sets.held[0])
    other = make_data(datasets=data.datasets, holdout=0.2, seed=seed + 7, img_size=8, in_chans=1)
    other.setup("fit")
    assert ids(other.sets.held[0]) != ids(again.sets.held[0])
    assert [len(index) for _, index in again.sets.all_images()] == [200]  # `hjepa predict` has all


def test_held_out_images_and_a_probe_s_are_not_the_same(tmp_path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(100):
            Image.fromarray(np.full((8, 8), i + 100 * (name == "dog"), dtype=np.uint8)).save(
                tmp_path / name / f"{i}.png"
            )
    folder = {"name": "folder", "root": str(tmp_path)}
    data = make_data(datasets=[folder], probe=[{**folder, "holdout": 0.2}], holdout=0.25, img_size=8, in_chans=1)
    data.setup("fit")
    images, index = data.sets.probe[1]
    tested = images.subset(index)
    trained, held, tested = ({*ids(s)} for s in (data.sets.train[0], data.sets.held[0], tested))
    assert [len(p) for p in (trained, held, tested)] == [120, 40, 40]
    assert len(trained | held | tested) == 200


def test_a_collapsed_encoder_has_rank_1(digits_run) -> None:
    trainer, model, _, _, data, _ = digits_run
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert figures(trainer, model, data)["val/rankme"] > 1.2
    for encoder in (model.context_encoder, model.target_encoder):
        encoder.vit.norm.weight.data.zero_()
        encoder.vit.norm.bias.data.fill_(1.0)
    dead = figures(trainer, model, data)
    model.load_state_dict(before)
    for name in ("rankme", "lidar", "rankme_online"):
        assert dead[f"val/{name}"] == pytest.approx(1, abs=0.01), name
    assert dead["val/alpha_req"] == dead["val/alpha_req_gap"] == float("inf")


def test_training_is_that_of_the_same_images_without_a_validation(tmp_path) -> None:
    """Whatever a validation draws or computes, the trained weights are the same."""
    plain = run(tmp_path / "a", make_data(), check_val_every_n_epoch=100)[1]
    validated = run(tmp_path / "b", make_data())[1]
    for (name, one), two in zip(plain.state_dict().items(), validated.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"holdout": 0.6}, r"invalid `data.holdout=0.6`: must be a number in \[0, 0.5\] or null"),
        (
            {"datasets": [{"name": "webdataset", "root": "x.tar"}]},
            "invalid `data.holdout=0.05`: needs images by index, and webdataset is a stream",
        ),
    ],
)
def test_what_cannot_be_held_out_is_rejected(keys, sentence) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_data(**keys, img_size=8, in_chans=1).setup("fit")


def test_two_datasets_of_one_folder_are_rejected_and_a_small_folder(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    photos = _photos(tmp_path / "in" / "photos", 50)
    nested = [{"name": "folder", "root": str(r)} for r in (tmp_path / "in", photos)]
    with pytest.raises(ConfigError, match=r"invalid `datasets.root=.*photos`: overlaps with another dataset"):
        make_data(datasets=nested, holdout=0.5, img_size=8, in_chans=1).setup("fit")
    with pytest.raises(ConfigError, match=r"`data.holdout=0.5`: its metrics need 32 images, more than half of the 50"):
        make_data(datasets=nested[1:], holdout=0.5, img_size=8, in_chans=1).setup("fit")


@pytest.mark.parametrize("value", [None, 0])
def test_none_and_zero_change_nothing(value) -> None:
    with_key, without = make_data(holdout=value), MultiDatasetDataModule(datasets="digits", batch_size=32, views=2)
    assert with_key.holdout is None
    assert with_key.settings().keys() == without.settings().keys()
    for data in (with_key, without):
        data.img_size, data.in_chans = 8, 1
    with_key.setup("validate")
    assert with_key.val_dataloader() == []
    assert make_data().settings()["holdout"] == 0.05


SCRIPT = """
import sys, json, torch
from pathlib import Path
from tests.callbacks.test_held_out import *
torch.set_num_threads(1)
devices, out = int(sys.argv[1]), Path(sys.argv[2])
keys = dict(devices=devices, strategy="ddp" if devices > 1 else "auto", use_distributed_sampler=False)
pl.seed_everything(0)
module = HJEPALightningModule(**MODEL)
trainer = pl.Trainer(accelerator="cpu", callbacks=[HeldOutMetrics()], logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, **keys)
found = figures(trainer, module, make_data(batch_size=36 // devices))
if trainer.is_global_zero:
    out.write_text(json.dumps(found))
"""


def test_two_processes_find_what_one_does(tmp_path, monkeypatch) -> None:
    script, found = tmp_path / "validate.py", []
    script.write_text(SCRIPT)
    for devices in (1, 2):
        out = tmp_path / f"{devices}.json"
        words = [str(script), str(devices), str(out)]
        if devices == 1:
            monkeypatch.setattr("sys.argv", words)
            exec(compile(SCRIPT, str(script), "exec"), {"__name__": "__main__"})
        else:
            done = subprocess.run(
                [sys.executable, *words], capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        found.append(json.loads(out.read_text()))
    assert found[0].keys() == found[1].keys() >= {"val/loss", "val/rankme", "val/lidar"}
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_a_small_fraction_holds_out_what_the_metrics_need() -> None:
    data = make_data(holdout=0.001, img_size=8, in_chans=1)
    data.setup("fit")
    assert len(data._sets.held[0]) == 32


@pytest.mark.parametrize(
    ("datasets", "sentence"),
    [
        (
            [{"name": "digits", "fraction": 0.5}, {"name": "digits_canvas"}],
            r"`datasets.fraction=1`: is another than that of",
        ),
        (
            [{"name": "fake"}, {"name": "fake", "split": "train+test"}],
            r"`datasets.split=train\+test`: overlaps with split train",
        ),
    ],
)
def test_datasets_with_images_in_common_are_rejected(datasets, sentence) -> None:
    configs = [DatasetConfig(**d) for d in datasets]
    with pytest.raises(ConfigError, match=sentence):
        check_apart(configs, [None, None])


def test_held_out_images_that_nothing_measures_are_rejected(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"`data.holdout=.*`: has no effect with trainer.limit_val_batches=0"):
        run(tmp_path, make_data(), limit_val_batches=0)
