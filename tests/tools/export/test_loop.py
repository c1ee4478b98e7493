"""From a run to someone else's hands: what a short run learned, as other programs see it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hjepa_pl.__main__ import main
from hjepa_pl.data.sources.embedded import digits

DOCUMENT = Path(__file__).parents[3] / "docs" / "export.md"
SCRIPTS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)

ELSEWHERE = """
import sys
sys.modules["hjepa_pl"] = None  # cannot be imported
import numpy as np, timm, torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

model = timm.create_model("local-dir:digits-vit", pretrained=True).eval()
config = model.pretrained_cfg
mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))

def encode(images):
    x = F.interpolate(torch.from_numpy(images) / 255, config["input_size"][1:], mode="bilinear", antialias=True)
    with torch.no_grad():
        return model((x - mean) / std).numpy()

data = np.load("digits.npz")
votes = lambda distance: np.exp((1 - distance) / 0.07)
knn = KNeighborsClassifier(20, metric="cosine", weights=votes, algorithm="brute")
knn.fit(encode(data["train"]), data["train_label"])
print(100 * knn.score(encode(data["test"]), data["test_label"]))
"""
"""The loop's other end, with timm and scikit-learn alone: the protocol of the probe, written a second time."""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Return the folder in which a short quickstart has run, and was exported."""
    folder = tmp_path_factory.mktemp("loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["hjepa"])
        short = ["--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=3", "--model.ema.momentum=0.8"]
        assert main(["fit", "quickstart", *short]) == 0
        assert main(["export", "--ckpt", "results/quickstart", "--format", "hf", "--out", "digits-vit"]) == 0
    return folder


def test_knn_elsewhere_is_the_runs_own(results) -> None:
    """To 0.1 points: not one test image of 359 is classified otherwise."""
    metrics = json.loads((results / "results/quickstart/summary.json").read_text())["metrics"]
    train, test = digits("", "train"), digits("", "test")
    arrays = {"train": train.images, "train_label": train.labels, "test": test.images, "test_label": test.labels}
    np.savez(results / "digits.npz", **{key: x.numpy() for key, x in arrays.items()})
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=results, capture_output=True, text=True, check=True)
    found = float(done.stdout)
    assert found == pytest.approx(metrics["probe/digits/knn"], abs=0.1)
    assert metrics["probe/digits/untrained_knn"] + 5 < found


def test_the_card_has_the_figures_of_the_run(results) -> None:
    metrics = json.loads((results / "results/quickstart/summary.json").read_text())["metrics"]
    card = (results / "digits-vit" / "README.md").read_text()
    for label, kind in (("raw pixels", "pixels_{}"), ("untrained network", "untrained_{}"), ("**this network**", "{}")):
        values = [metrics[f"probe/digits/{kind.format(probe)}"] for probe in ("knn", "linear")]
        assert f"| {label} | {values[0]:.1f} | {values[1]:.1f} |" in card
    for words in ("at the end of the run, at step 66.", "digits (train)", "| seed | 0 |", "None is set."):
        assert words in card
    assert str(results) not in card


def test_the_script_of_the_documentation(results) -> None:
    """At most ten lines after the imports, with scikit-learn."""
    script = SCRIPTS[0]
    assert len([line for line in script.splitlines() if "import" not in line]) <= 10
    done = subprocess.run([sys.executable, "-c", script], cwd=results, capture_output=True, text=True, check=True)
    assert 0.7 < float(done.stdout) <= 1.0
