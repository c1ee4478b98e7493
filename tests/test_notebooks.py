"""Every notebook's code runs from top to bottom."""

import json
import re
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

mpl.use("Agg")
NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_runs(path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert not any(c.get("outputs") for c in cells), "outputs are not committed"
    names: dict = {}
    plt.close("all")
    for cell in code:
        # One epoch is enough to show that every line runs.
        exec(re.sub(r"(max_epochs|check_val_every_n_epoch)=\d+", r"\1=1", cell), names)
    if path.stem == "pretrain":
        assert names["again"].hparams == names["module"].hparams
    if path.stem == "finetune":
        images = next(iter(names["DataLoader"](names["test"], batch_size=8)))[0]
        expected = names["module"].eval()(images)
        assert torch.equal(names["again"](images), expected)
        assert torch.equal(names["again"].head(names["tuned"](images)), expected)
    if path.stem == "explore":
        assert len(names["plt"].get_fignums()) == 3
