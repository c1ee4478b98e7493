"""The figures of each dataset: shares that make up the prediction loss, on logged steps, of images that are there."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger
from PIL import Image

from hjepa_pl.modules.term_log import sum_by_dataset
from tests.conftest import SMALL_PREDICTOR, SMALL_PROJECTOR, TINY, make_batch, with_crops
from tests.modules.test_training import make_data, make_module, make_trainer

THREE = [{"cell": 1, "weight": 0.3}, {"cell": 2}]
CASES = {
    "three": {},
    "raw, pairwise": {"levels": [*THREE, {"cell": "image", "compare": "pairwise", "weight": 2}], "level_scale": "raw"},
    "pyramid": {"levels": [*THREE, {"cell": "image", "masked_view": "add"}], "pyramid": {"weight": 0.7}},
    "mse": {"prediction": "mse"},
    "cosine": {"prediction": "cosine"},
    "crops": {"masks": {"strategy": "cross_crop_prediction"}},
    "LeJEPA": {"levels": [{"cell": "image", "weight": 0.5}]},
    "I-JEPA": {"levels": "flat"},
}


def prediction(terms):
    """The weighted terms that are no regularisers."""
    kept = [
        n for n in terms if not n.startswith(("sigreg", "vicreg", "ntxent", "loss")) and not n.endswith("_weighted")
    ]
    return sum(terms.get(f"{n}_weighted", terms[n]) for n in kept)


@pytest.mark.parametrize("case", CASES)
def test_the_mean_of_the_images_shares_is_the_loss_without_regularisers(tiny_module, case) -> None:
    settings = {} if case == "LeJEPA" else {"predictor": SMALL_PREDICTOR}
    settings |= {} if case == "I-JEPA" else {"projector": SMALL_PROJECTOR}
    module = tiny_module(**({"encoder": TINY, "levels": "three"} | settings | CASES[case]))
    batch = make_batch(views=1 if case == "I-JEPA" else 2)
    _, record = module.compute(with_crops(batch) if case == "crops" else batch)
    shares = record.prediction_by_image()
    assert shares.shape == (8,)
    assert shares.std() > 1e-4
    torch.testing.assert_close(shares.mean(), prediction(record.terms).detach(), atol=1e-6, rtol=1e-6)


def test_without_a_distance_there_are_no_shares(tiny_module) -> None:
    terms = [{"kind": "ntxent"}]
    module = tiny_module(levels=[{"cell": "image", "compare": "none"}], regularizers=terms)
    assert module.compute(make_batch())[1].prediction_by_image() is None


def test_sums_are_by_dataset_and_one_that_is_not_finite_stays_by_itself() -> None:
    values = torch.tensor([1.0, 2.0, float("nan"), 4.0, 8.0])
    sums, counts = sum_by_dataset(values, torch.tensor([0, 3, 1, 0, 7]), 4).tolist()
    assert (sums[0], sums[2], sums[3]) == (5, 0, 2)
    assert np.isnan(sums[1])
    assert counts == [2, 1, 0, 1]


class Kept(Logger):
    """A logger that keeps what it is given."""

    name = version = "kept"

    def __init__(self):
        self.rows = {}

    def log_metrics(self, metrics, step=None):
        self.rows.setdefault(step, {}).update(metrics)

    def log_hyperparams(self, *args):
        pass

    def drawn(self, key):
        return [row[key] for _, row in sorted(self.rows.items()) if key in row]


class Sources(pl.Callback):
    def __init__(self):
        self.counts = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.counts.append(torch.bincount(batch.source, minlength=2).tolist())


@pytest.fixture
def noise_and_constant(tmp_path):
    for name in ("noise", "constant"):
        (tmp_path / name).mkdir()
        for i in range(40):
            noise = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
            image = noise if name == "noise" else np.full((8, 8), i, dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    return [{"name": "folder", "root": str(tmp_path / name)} for name in ("noise", "constant")]


def fitted(tmp_path, datasets, **trainer):
    logger, sources = Kept(), Sources()
    runner = make_trainer(tmp_path, logger=logger, callbacks=[sources], **trainer)
    plain = {"preset": "none", "flip": 0.5, "crop_scale": [0.5, 1.0]}
    runner.fit(make_module(), make_data(datasets=datasets, augmentation=plain, epoch_size=64))
    return logger, sources.counts


def test_noise_and_constant_images_have_figures_of_their_own_that_make_up_the_loss(
    tmp_path, noise_and_constant
) -> None:
    logger, counts = fitted(tmp_path, noise_and_constant)
    assert len(counts) == len(logger.drawn("train/loss")) == 4
    for step, (noise, constant) in enumerate(counts):
        row = logger.rows[step]
        found = [row[f"train/prediction/{name}-train"] for name in ("noise", "constant")]
        assert abs(found[0] - found[1]) > 0.05
        terms = {name.removeprefix("train/"): row[name] for name in row if name.startswith("train/")}
        terms = {n: v for n, v in terms.items() if n.startswith(("last", "image"))}
        assert (noise * found[0] + constant * found[1]) / 16 == pytest.approx(prediction(terms), abs=1e-6)


def test_a_step_has_the_figures_of_its_micro_batches_and_of_the_sets_that_are_in_it(
    tmp_path, noise_and_constant
) -> None:
    noise_and_constant[0]["weight"] = 0.02
    logger, counts = fitted(tmp_path, noise_and_constant, accumulate_grad_batches=2, log_every_n_steps=1)
    by_step = [np.add(*pair) for pair in zip(counts[::2], counts[1::2], strict=True)]
    assert sorted(n for n, _ in by_step) == [0, 1]  # one image of noise in the epoch
    for step, (noise, _) in enumerate(by_step):
        assert ("train/prediction/noise-train" in logger.rows[step]) == bool(noise)
        assert "train/prediction/constant-train" in logger.rows[step]


def test_one_dataset_has_no_figure_beside_the_loss_and_other_steps_have_none(tmp_path, noise_and_constant) -> None:
    logger, _ = fitted(tmp_path, noise_and_constant[:1])
    assert not [key for row in logger.rows.values() for key in row if "prediction" in key]
    logger, _ = fitted(tmp_path, noise_and_constant, log_every_n_steps=3)
    assert [s for s, row in logger.rows.items() if any("prediction" in key for key in row)] == [2]


@pytest.mark.parametrize(("crops", "wanted"), [({"min_local_views": 1, "warmup_epochs": 2}, [1, 2, 3]), ({}, [])])
def test_a_growing_number_of_crops_is_logged_at_the_start_of_each_epoch(tmp_path, crops, wanted) -> None:
    logger = Kept()
    data = make_data(multicrop={"local_views": 3, "local_size": 4, **crops}, epoch_size=32)
    make_trainer(tmp_path, logger=logger, max_epochs=3).fit(make_module(), data)
    assert logger.drawn("data/local_views") == wanted
