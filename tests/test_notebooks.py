"""Every notebook's code runs from top to bottom."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_runs(path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert not any(c.get("outputs") for c in cells), "outputs are not committed"
    names: dict = {}
    for cell in code:
        # One epoch is enough to show that every line runs.
        exec(
            cell.replace("max_epochs=8", "max_epochs=1").replace(
                "check_val_every_n_epoch=8", "check_val_every_n_epoch=1"
            ),
            names,
        )
    assert names["again"].hparams == names["module"].hparams
