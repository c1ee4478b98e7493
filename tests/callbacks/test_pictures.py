"""Pictures of real runs: what is drawn, where it goes, and that training does not notice."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.__main__ import main
from hjepa_pl.callbacks.pictures import PictureCallback, callback
from hjepa_pl.callbacks.pictures.output import thin
from tests.callbacks.callback_toy import ToyData, fit
from tests.cli.test_cli import TINY

ENCODER = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 8, "patch_size": 2, "in_chans": 1}
ALL = {"views", "errors", "pca", "attention", "spectrum", "gradients"}


def train(
    folder: Path, watch: bool = True, ckpt: str | None = None, probe: bool = True, data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None, **keys: Any,
) -> tuple[HJEPALightningModule, PictureCallback | None, torch.Tensor]:  # fmt: skip
    """Train four steps an epoch for two epochs; return the module, the callback and the global generator's state."""
    pl.seed_everything(0, verbose=False)
    defaults: dict[str, Any] = {
        "encoder": ENCODER | {"drop_path_rate": 0.2}, "levels": [{"cell": 1}, {"cell": 2}, {"cell": "image"}],
        "predictor": {"embed_dim": 24, "depth": 1, "num_heads": 2}, "projector": {"hidden_dim": 32, "out_dim": 16},
    }  # fmt: skip
    module = HJEPALightningModule(**{k: v for k, v in (defaults | keys).items() if v is not None})
    probes = {"probe": [{"name": "digits", "max_train": 100, "max_test": 60}]} if probe else {}
    module_data = MultiDatasetDataModule(
        **{"datasets": [{"name": "digits"}], "batch_size": 16, "epoch_size": 64, "views": 2,
           "augmentation": {"gray": 0.0, "jitter": [0.4, 0.4, 0.0, 0.0]}, **probes, **(data or {})}
    )  # fmt: skip
    pictures = PictureCallback(str(folder)) if watch else None
    run = pl.Trainer(**{
        "accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 2, "enable_progress_bar": False,
        "enable_model_summary": False, "logger": False, "default_root_dir": folder, "num_sanity_val_steps": -1,
        "callbacks": [ModelCheckpoint(folder, save_top_k=-1), *([pictures] if pictures else [])], **(trainer or {}),
    })  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The picture")
        run.fit(module, module_data, ckpt_path=ckpt)
    return module, pictures, torch.get_rng_state()


def same(one: HJEPALightningModule, other: HJEPALightningModule) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_weights_are_bit_identical_with_and_without_also_when_resumed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(callback, "_SHARE", 1e9)  # every validation
    bare, _, state = train(tmp_path / "bare", watch=False)
    seen, pictures, other = train(tmp_path / "seen")
    assert same(bare, seen)
    assert torch.equal(state, other)
    assert set(pictures.drawn) == ALL
    again, resumed, _ = train(tmp_path / "again", ckpt=next((tmp_path / "seen").glob("epoch=0*.ckpt")))
    assert same(bare, again)
    assert set(resumed.drawn) == ALL
    assert all(m.training for m in again.context_encoder.modules())
    files = {path.name for path in (tmp_path / "seen/pictures/history").iterdir()}
    assert files == {f"{name}_epoch000{n}.png" for name in ("errors", "pca", "attention") for n in (1, 2)}
    for name in ALL:
        picture = np.asarray(Image.open(tmp_path / f"seen/pictures/{name}.png"))
        assert picture.shape[2] == 3
        assert len(np.unique(picture)) > 20


@pytest.mark.parametrize(
    ("keys", "data", "missing"),
    [
        ({"encoder": ENCODER, "levels": [{"cell": "image"}], "predictor": None}, {}, {"errors"}),
        ({"encoder": ENCODER | {"img_size": [8, 12], "position": "rope"}, "levels": "flat", "projector": None},
         {"views": 1}, set()),
        ({"encoder": ENCODER, "target_norm": "batch", "masks": {"kind": "random", "per_image": 2}}, {}, set()),
        ({"encoder": {"family": "tests.models.own_encoder.ConvStemEncoder", "embed_dim": 24, "depth": 2, "img_size": 16,
                      "patch_size": 4, "in_chans": 1}}, {}, {"attention"}),
    ],
    ids=["image only", "oblong rope flat", "batch norm, two masks", "own family"],
)  # fmt: skip
def test_each_model_gets_the_pictures_it_can_have(tmp_path, keys, data, missing) -> None:
    _, pictures, _ = train(tmp_path, data=data, trainer={"max_epochs": 1, "num_sanity_val_steps": 0}, **keys)
    assert ALL - set(pictures.drawn) - missing == set()
    assert {path.stem for path in (tmp_path / "pictures").glob("*.png")} == set(pictures.drawn)


def test_without_validation_epochs_are_drawn(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(callback, "_SHARE", 1e9)
    _, pictures, _ = train(tmp_path, probe=False)
    assert set(pictures.drawn) == ALL
    assert {p.name for p in (tmp_path / "pictures/history").glob("pca*")} == {"pca_epoch0001.png", "pca_epoch0002.png"}


def test_later_validations_are_drawn_within_the_share_of_the_time_only(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(callback, "_SHARE", 0.0)
    _, pictures, _ = train(tmp_path)
    assert {p.name for p in (tmp_path / "pictures/history").glob("pca*")} == {"pca_epoch0001.png"}
    assert pictures.seconds > 0


def test_tensorboard_has_the_pictures_and_the_embedding_with_thumbnails(tmp_path) -> None:
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    train(tmp_path, trainer={"logger": logger, "max_epochs": 1})
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0})
    events.Reload()
    assert {f"pictures/{name}" for name in ALL} <= set(events.Tags()["images"])
    (sprite,) = (tmp_path / "tb").rglob("sprite.png")
    (table,) = (tmp_path / "tb").rglob("tensors.tsv")
    assert Image.open(sprite).size == (64, 64)  # 8 x 8 thumbnails of 8 x 8 pixels hold 60
    assert np.loadtxt(table).shape == (60, 24)
    labels = (table.parent / "metadata.tsv").read_text().split()
    assert set(labels) <= {str(n) for n in range(10)}


def test_a_module_of_another_make_gets_what_there_is(tmp_path) -> None:
    pictures = PictureCallback(str(tmp_path))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The picture")
        fit(tmp_path, [pictures])
    assert set(pictures.drawn) == {"views", "spectrum", "gradients"}


def test_a_picture_that_fails_is_left_out_with_one_warning(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(callback, "_SHARE", 1e9)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "views.png").mkdir()  # no file can take its place
    pictures = PictureCallback(str(tmp_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, _ = fit(tmp_path, [pictures])
    said = [str(w.message) for w in caught if "The picture" in str(w.message)]
    assert len(said) == 1
    assert said[0].startswith("The picture views is left out: ")
    assert trainer.global_step == 12
    assert "spectrum" in pictures.drawn


def test_the_command_line_draws_unless_told_not_to(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hjepa"])
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert main(["fit", "--config=tiny.yaml"]) == 0
    assert {path.stem for path in (tmp_path / "results/tiny/pictures").glob("*.png")} == ALL
    words = ["--logging.pictures=false", "--trainer.logger=false", "--experiment_name=bare"]
    assert main(["fit", "--config=tiny.yaml", *words]) == 0
    assert not (tmp_path / "results/bare/pictures").exists()
    one, other = (
        torch.load(tmp_path / f"results/{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("tiny", "bare")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert main(["fit", "--config=tiny.yaml", "--logging.pictures=some"]) == 2
    assert "invalid `logging.pictures=some`: must be true or false." in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_draw_once_and_end(tmp_path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    words = ["fit", "--config=tiny.yaml", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=2"]
    done = subprocess.run(
        [sys.executable, "-m", "hjepa_pl", *words, "--data.batch_size=16"],
        cwd=tmp_path, capture_output=True, text=True, timeout=400,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "The picture" not in done.stderr
    assert {path.stem for path in (tmp_path / "results/tiny/pictures").glob("*.png")} == ALL


def test_gradient_norms_are_those_of_the_parts(tmp_path) -> None:
    class Seen(pl.Callback):
        norms: ClassVar[list[dict[str, float]]] = []

        def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
            groups = {"encoder": module.encoder, "predictor": module.predictor}
            flat = {n: torch.cat([p.grad.flatten() for p in g.parameters()]) for n, g in groups.items()}
            self.norms.append({name: float(gradient.norm()) for name, gradient in flat.items()})

    pictures = PictureCallback(str(tmp_path))
    fit(tmp_path, [pictures, Seen()])
    recorded = pictures._gradients.history
    assert [step for step, _, _ in recorded] == [1, 3, 5, 7, 9, 11]
    for step, names, norms in recorded:
        found = dict(zip(names, norms.tolist(), strict=True))
        assert found == pytest.approx(Seen.norms[step], rel=1e-5)


def test_the_history_stays_short_and_even(tmp_path) -> None:
    for epoch in range(1, 41):
        (tmp_path / f"pca_epoch{epoch:04d}.png").touch()
        thin(tmp_path, "pca")
    epochs = sorted(int(p.stem[-4:]) for p in tmp_path.iterdir())
    assert len(epochs) == 8
    assert (epochs[0], epochs[-1]) == (1, 40)
    assert max(np.diff(epochs)) <= 12


def test_embeddings_of_the_last_steps_serve_where_there_is_no_probe(tmp_path) -> None:
    pictures = PictureCallback(str(tmp_path))
    fit(tmp_path, [pictures], data=ToyData(probes=()))
    assert {"views", "spectrum", "gradients"} == set(pictures.drawn)
