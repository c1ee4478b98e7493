"""Parts in a file outside the package: each trains two real steps and changes the loss or the metrics."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hjepa_pl import HJEPALightningModule
from hjepa_pl.__main__ import main
from hjepa_pl.evaluation import PROBES, Features, Probe
from hjepa_pl.types import ConfigError
from tests.cli.test_cli import config as config  # a fixture

PARTS = '''
from typing import Annotated

import torch
from annotated_types import Gt, Le

from hjepa_pl.losses import Regularizer
from hjepa_pl.losses.base import Weight
from hjepa_pl.masks import MaskGenerator, MaskShape
from hjepa_pl.types import Masks
from hjepa_pl.utils.settings import settings


@settings("regularizers")
class Energy(Regularizer):
    """Mean of |z|^power."""

    weight: Weight = 0.5
    """Weight of the term."""
    power: Annotated[float, Gt(0), Le(4)] = 2.0
    """Exponent."""

    def __call__(self, embeddings, *, partial=0, valid=None, key=0):
        return embeddings.abs().pow(self.power).mean()


def log_cosh(prediction, target):
    return (prediction - target).cosh().log().mean()


class LeftHalf(MaskGenerator):
    """Hides the columns on the left."""

    def __init__(self, config, grid, cells, seed, joint=True, *, columns):
        super().__init__(config, grid, cells, seed, joint)
        self.columns = columns
        visible = grid[0] * (grid[1] - self.columns)
        self.shapes = (MaskShape(grid[0], self.columns, 1, visible),)

    def _draw(self, counters):
        images, (height, width) = len(counters.position), self.grid
        column = torch.arange(height * width) % width
        context = torch.nonzero(column >= self.columns).T.expand(images, -1)
        corner = torch.zeros(images, 1, dtype=torch.int64)
        return Masks(context, tuple(self._cells_of(c, corner, corner, (height, self.columns)) for c in self.cells))
'''


@pytest.fixture
def parts(config, tmp_path, monkeypatch) -> Path:
    """Write the parts next to a config, and return the config."""
    (tmp_path / "own_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    return config


def losses(config: Path, name: str, *words: str) -> dict[str, list[str]]:
    """Train two steps; return the columns of the run's metrics."""
    run = ["--trainer.max_steps=2", "--data.probe=[]", f"--experiment_name={name}"]
    assert main(["fit", str(config), *run, *words]) == 0
    rows = list(csv.DictReader(next(Path("results", name).rglob("metrics.csv")).open()))
    return {key: [row[key] for row in rows if row[key]] for key in rows[0]}


def test_a_regularizer(parts, capsys) -> None:
    own = "--model.regularizers=[{kind: sigreg}, {kind: own_parts.Energy, power: %s}]"
    plain, mine, other = losses(parts, "plain"), losses(parts, "mine", own % 2), losses(parts, "other", own % 1)
    assert len(mine["train/Energy_image"]) == 2
    assert plain["train/loss"] != mine["train/loss"] != other["train/loss"]
    weighted = float(mine["train/Energy_image_weighted"][0])
    assert weighted == pytest.approx(0.5 * float(mine["train/Energy_image"][0]))
    # A checkpoint holds its kind and keys, so that a resumed run is compared with it.
    checkpoint = "--ckpt_path=results/mine/checkpoints/last.ckpt"
    capsys.readouterr()
    assert main(["fit", str(parts), "--data.probe=[]", own % 3, checkpoint, "--trainer.max_steps=4"]) == 2
    assert "regularizers[1].power was 2, is 3" in capsys.readouterr().err


def test_a_regularizer_from_python_is_stored_and_reloaded(parts) -> None:
    import own_parts

    settings: dict[str, Any] = {
        "encoder": {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 8, "patch_size": 2}
    }
    with torch.device("meta"):
        module = HJEPALightningModule(levels=[{"cell": "image"}], regularizers=[own_parts.Energy(power=3)], **settings)
        stored = module.hparams["regularizers"]
        assert stored == [{"kind": "own_parts.Energy", "stream": "image", "weight": 0.5, "power": 3.0}]
        again = HJEPALightningModule(**module.hparams)
    assert again.regularizers == module.regularizers == (own_parts.Energy(power=3),)
    with pytest.raises(ConfigError, match=r"invalid `regularizers.power=5`: must be a number in \(0, 4\]"):
        HJEPALightningModule(regularizers=[{"kind": "own_parts.Energy", "power": 5}], **settings)
    with pytest.raises(ConfigError, match="regularizers does not accept 'powr'; did you mean power"):
        HJEPALightningModule(regularizers=[{"kind": "own_parts.Energy", "powr": 2}], **settings)


def test_a_prediction_loss(parts, capsys) -> None:
    plain, mine = losses(parts, "plain"), losses(parts, "mine", "--model.prediction=own_parts.log_cosh")
    assert plain["train/last_c1"] != mine["train/last_c1"]
    assert main(["fit", str(parts), "--model.prediction=own_parts.log_cos"]) == 2
    assert "invalid `prediction=own_parts.log_cos`: cannot be imported" in capsys.readouterr().err


def test_a_mask(parts) -> None:
    own = "--model.masks={kind: own_parts.LeftHalf, options: {columns: %d}}"
    plain, mine, wide = losses(parts, "plain"), losses(parts, "mine", own % 1), losses(parts, "wide", own % 2)
    assert plain["train/last_c1"] != mine["train/last_c1"] != wide["train/last_c1"]


class NearestMean(Probe):
    """Accuracy of the nearest class mean."""

    title = "nearest mean"

    def __call__(self, features: Features) -> dict[str, float]:
        x, y, test_x, test_y, num_classes = features
        means = torch.stack([x[y == label].mean(0) for label in range(num_classes)])
        correct = torch.cdist(test_x, means).argmin(dim=1) == test_y
        return {"": 100 * correct.float().mean().item(), "val": 50.0, "spread": means.std().item()}

    def extra_metrics(self, num_classes: int) -> tuple[str, ...]:
        return ("spread",)


def test_a_probe(parts, monkeypatch, capsys) -> None:
    monkeypatch.setattr(PROBES, "_parts", dict(PROBES))  # undone at the end
    PROBES["nearest_mean"] = NearestMean
    words = ["--trainer.max_steps=2", "--trainer.limit_train_batches=2", "--data.epoch_size=64"]
    assert main(["fit", str(parts), *words, "--checkpoint.monitor=probe/digits/nearest_mean_val"]) == 0
    summary = json.loads(Path("results/tiny/summary.json").read_text())
    for name in ("nearest_mean", "untrained_nearest_mean", "pixels_nearest_mean", "nearest_mean_online"):
        assert 10 < summary["metrics"][f"probe/digits/{name}"] <= 100
    assert summary["metrics"]["probe/digits/nearest_mean_spread"] > 0
    assert summary["best"]["monitor"] == "probe/digits/nearest_mean_val"
    assert summary["best"]["value"] == 50
    assert "nearest mean" in capsys.readouterr().out
    assert main(["fit", str(parts), *words, "--checkpoint.monitor=probe/digits/nearest_mean"]) == 2
    assert "use probe/digits/nearest_mean_val" in capsys.readouterr().err
