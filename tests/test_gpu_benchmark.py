"""`tests/benchmarks/gpu.py` in miniature: killed half-way, started again, and complete."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SCRIPT = Path(__file__).parent / "benchmarks" / "gpu.py"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")


@pytest.fixture
def pictures(tmp_path) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(12):
                pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the benchmark; what a failed test leaves is killed."""
    started = []

    def begin(folder: Path, *more: str) -> subprocess.Popen[str]:
        started.append(_begin(folder, *more))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def _begin(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(folder / "gpu.json"), "--table", str(folder / "gpu.md"), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def parts(folder: Path) -> dict:
    path = folder / "gpu.json"
    return json.loads(path.read_text())["parts"] if path.exists() else {}


@pytest.mark.slow  # a minute of computing
def test_a_killed_benchmark_goes_on_and_fills_its_table(tmp_path, pictures, start) -> None:
    """Real processes: what was finished is kept as it is, all else is measured, and nothing fails."""
    first = start(tmp_path, "--miniature", "--cifar10", str(pictures))
    deadline = time.monotonic() + 600
    while len(parts(tmp_path)) < 2:
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    before = parts(tmp_path)
    assert 2 <= len(before) < 10
    left = (tmp_path / "gpu.md").read_text().count("left for the next start")
    assert left in (13 - len(before), 14 - len(before))  # it is written after the JSON

    second = start(tmp_path, "--miniature", "--cifar10", str(pictures))
    said, errors = second.communicate(timeout=900)
    assert second.returncode == 0, said + errors
    assert said.splitlines()[-1] == "13 of 13 parts are done."
    after = parts(tmp_path)
    assert {name: after[name] for name in before} == before
    assert not any(f"{name} ..." in said for name in before)  # not run again
    assert all(part["error"] is None and part["rows"] for part in after.values()), after
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert len(found["starts"]) == 2
    assert {"gpus", "driver", "versions"} <= found["machine"].keys()
    check_figures({name: part["rows"] for name, part in after.items()})
    table = (tmp_path / "gpu.md").read_text()
    assert "left for" not in table
    assert "failed" not in table
    for name, part in after.items():
        assert f"| {name} | {next(iter(part['rows']))} |" in table
        assert all(f"| {row} |" in table for row in part["rows"])


def check_figures(rows: dict) -> None:
    """Check that the figures are those of real steps and runs."""
    small = rows["ViT-S/16"]
    assert small["matrix products"]["TFLOP/s"] > 0
    plain = small["three, batch 4"]
    assert plain["utilization"] == pytest.approx(plain["TFLOP/s"] / small["matrix products"]["TFLOP/s"])
    assert plain["utilization"] > 0
    assert plain["images/s"] == pytest.approx(4 / (plain["ms"] / 1e3))
    assert small["flat, 1 view, batch 4"]["three takes"] > 1
    assert rows["ViT-Ti/4 at 32"]["launches a step, three"]["together"] > 500
    exact = rows["exactness"]
    assert exact["20 steps of equal seeds"]["bit-equal"]  # on a CPU; on a GPU a figure
    assert exact["killed and resumed"]["bit-equal"]
    assert exact["masks against the CPU's"]["equal"] == "20 of 20 steps"
    bf16 = exact["loss, bf16-mixed against 32-true"]
    assert 0 < bf16["largest, relative"] < 0.5
    assert rows["compile"]["compile"] == "needs CUDA"
    assert rows["I-JEPA"] == {"": "needs --reference SCRIPT --ijepa CHECKOUT"}
    (run,) = rows["CIFAR-10"].values()
    assert run["steps"] == 4
    assert "probe/folder/linear" in run
    assert rows["overnight"]["projected"]["epochs"] == 45
    assert "two GPUs" in rows["DDP"][""]


def test_a_part_that_fails_leaves_one_line_and_the_others_go_on(tmp_path, start) -> None:
    """A folder without images fails in `hjepa fit`; the parts after it run."""
    (tmp_path / "empty").mkdir()
    words = ["--miniature", "--cifar10", str(tmp_path / "empty"), "--parts", "CIFAR-10", "DDP"]
    process = start(tmp_path, *words)
    said, errors = process.communicate(timeout=900)
    assert process.returncode == 1, said + errors
    found = parts(tmp_path)
    assert found["DDP"]["error"] is None
    error = found["CIFAR-10"]["error"]
    log = tmp_path / "gpu.logs" / "CIFAR-10.txt"
    assert error.startswith("hjepa: error: ")
    assert error.endswith(f"(see {log})")
    assert "\n" not in error
    assert log.read_text().strip()
    assert f"failed: {error}" in (tmp_path / "gpu.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys) -> None:
    words = [str(SCRIPT), "--out", str(tmp_path / "gpu.json"), "--table", str(tmp_path / "gpu.md")]
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr("sys.path", [str(SCRIPT.parent), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "gpu.py: error: there is no CUDA device; add --miniature to try it on the CPU.\n"
    assert not (tmp_path / "gpu.json").exists()
