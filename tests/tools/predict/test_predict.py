"""`hjepa predict`: the features of a set in one file, in its order, or one sentence."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch.testing import assert_close

import hjepa_pl
from hjepa_pl.__main__ import main
from hjepa_pl.data.sources.embedded import digits

DOCUMENT = Path(__file__).parents[3] / "docs" / "export.md"


def photographs(folder: Path, count: int = 12, labels: bool = True) -> Path:
    """Write images of several sizes, in two classes or in none."""
    drawn = np.random.default_rng(0)
    for i in range(count):
        file = folder / (("cat", "dog")[i % 2] if labels else "") / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 255, (20 + i, 30, 3), dtype=np.uint8)).save(file)
    return folder


def run(data, path, *words: str, out: Path | None = None) -> tuple[int, Path]:
    out = out or path.parent / "features.safetensors"
    return main(["predict", str(data), "--ckpt", str(path), "--out", str(out), "--device=cpu", *words]), out


def test_features_of_a_set_in_memory(write, capsys) -> None:
    """The same as of the module's own `encode` on the clean images, whatever the batches."""
    module, path = write(encoder={"in_chans": 1})
    status, out = run("digits", path, "--split", "test", "--batch-size", "100")
    assert status == 0, capsys.readouterr().err
    found, images = load_file(out), digits("", "test")
    transform = hjepa_pl.load_encoder(path).transform()
    assert_close(found["features"], module.encode(transform(images.images)), rtol=0, atol=1e-6)
    assert torch.equal(found["labels"], images.labels)
    assert (tuple(found["features"].shape), bool(found["valid"].all())) == ((len(images), 32), True)
    with safe_open(out, "pt") as file:
        header = json.loads(file.metadata()["hjepa_pl"])
    assert (header["images"], header["classes"][3], header["branch"]) == ("digits (test)", "3", "target")
    status, half = run("digits", path, "--split=test", "--dtype=float16", out=out.with_name("half.safetensors"))
    assert_close(load_file(half)["features"], found["features"].half(), rtol=0, atol=2e-3)
    status, online = run("digits", path, "--split=test", "--branch=online", out=out.with_name("online.safetensors"))
    assert (load_file(online)["features"] - found["features"]).abs().max() > 1e-2


@pytest.mark.parametrize("labels", [True, False])
def test_features_of_files(labels, write, tmp_path, capsys, monkeypatch) -> None:
    """With the documented lines that read them; a broken file is marked, and the others keep their rows."""
    module, path = write()
    folder = photographs(tmp_path / "photographs", labels=labels)
    broken = sorted(folder.rglob("*.png"))[5]
    broken.write_bytes(broken.read_bytes()[:40])
    monkeypatch.chdir(tmp_path)
    status, _ = run(folder, path, "--num-workers=0", "--batch-size=5", out=tmp_path / "photographs.safetensors")
    shown = capsys.readouterr()
    assert status == 0, shown.err
    assert f"12 x 32 features of photographs; 1 file(s) cannot be decoded, the first is {broken}" in shown.out
    scope = {}
    exec(next(x for x in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL) if "paths" in x), scope)
    assert [folder / p for p in scope["paths"]] == sorted(folder.rglob("*.png"))
    assert scope["labels"].tolist() == ([0] * 6 + [1] * 6 if labels else [-1] * 12)
    transform = hjepa_pl.load_encoder(path).transform()
    for row, name in enumerate(scope["paths"]):
        if row == 5:
            assert np.isnan(scope["features"][row]).all()
            continue
        expected = module.encode(transform(folder / name)[None])[0]
        assert_close(torch.from_numpy(scope["features"][row]), expected, rtol=0, atol=1e-6)


def test_worker_processes_give_the_same(write, tmp_path) -> None:
    _, path = write()
    folder = photographs(tmp_path / "photographs")
    _, alone = run(folder, path, "--num-workers=0", out=tmp_path / "a.safetensors")
    _, helped = run(folder, path, "--num-workers=2", "--batch-size=3", out=tmp_path / "b.safetensors")
    for name, x in load_file(alone).items():
        assert_close(load_file(helped)[name], x, rtol=0, atol=1e-6)


def test_wrong_requests_are_one_sentence(write, tmp_path, capsys) -> None:
    _, path = write()
    folder = photographs(tmp_path / "photographs")
    for data, words, sentence in (
        ("nowhere", [], "invalid `DATA=nowhere`: must be a folder, or the name of a dataset with an index."),
        ("webdataset", ["--root", "x"], "invalid `DATA=webdataset`: must be a folder"),
        ("digits", ["--num-workers=2"], "invalid `--num-workers=2`: has no effect, the images are in memory"),
        ("digits", ["--split=val"], "invalid `--split=val`: must be train or test"),
        ("digits", ["--batch-size=0"], "invalid `--batch-size=0`: must be a whole number >= 1."),
        ("digits", ["--device=tpu9"], "invalid `--device=tpu9`: is not here; use auto or cpu"),
        (folder, ["--root=x"], "invalid `--root=x`: has no effect with the folder"),
        (folder, ["--out=x.npz"], "invalid `--out=x.npz`: must end in .safetensors."),
        (folder, ["--dtype=int8"], "invalid choice: 'int8'"),
    ):
        status, out = run(data, path, *words)
        error = capsys.readouterr().err
        assert (status, error.count("\n")) == (2, 1), error
        assert sentence in error
        assert not out.exists()
    assert run("digits", path)[0] == 0
    assert run("digits", path)[0] == 2
    assert "exists; choose another name, or replace it with --force" in capsys.readouterr().err
    assert run("digits", path, "--force")[0] == 0
    for file in sorted(folder.rglob("*.png"))[:3]:
        file.write_bytes(b"")
    status, out = run(folder, path, "--num-workers=0", out=tmp_path / "none.safetensors")
    assert status == 1
    assert "3 of 12 files cannot be decoded, the first is" in capsys.readouterr().err
    assert not out.exists()
    assert not list(tmp_path.glob(".*.part"))
