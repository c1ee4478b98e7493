"""The package as it is installed elsewhere: from its wheel, in an environment and a folder of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="builds and installs with uv")
def test_a_clean_environment_trains_and_exports(tmp_path) -> None:
    """Needs a package index, or uv's cache."""

    def call(*words: str | Path) -> str:
        clean = {key: x for key, x in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run([*words], cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("uv", "build", "-q", "--wheel", "--out-dir", tmp_path, ROOT)
    call("uv", "venv", "-q", "--python", sys.executable, "env")
    python = tmp_path / "env" / "bin" / "python"
    call("uv", "pip", "install", "-q", "--python", python, next(tmp_path.glob("*.whl")))
    hjepa = tmp_path / "env" / "bin" / "hjepa"
    assert str(tmp_path) in call(python, "-c", "import hjepa_pl; print(hjepa_pl.__file__)")
    assert "quickstart" in call(hjepa, "configs")
    short = ["--trainer.max_steps=2", "--trainer.max_epochs=1", "--data.epoch_size=128"]
    call(hjepa, "fit", "quickstart", *short)
    shown = call(hjepa, "export", "--ckpt", "results/quickstart", "--format", "hf", "--out", "digits-vit")
    assert "largest difference from the checkpoint" in shown
    call(hjepa, "predict", "digits", "--ckpt", "digits-vit", "--out", "features.safetensors")
    assert (tmp_path / "features.safetensors").is_file()
