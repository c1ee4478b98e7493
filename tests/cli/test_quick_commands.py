"""Commands that read no model: their words, what they import, and how soon they answer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hjepa_pl
from hjepa_pl.__main__ import main
from hjepa_pl.tools.version import _device

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "lightning", "timm", "torchvision", "numpy", "pydantic", "jsonargparse", "sklearn", "PIL", "rich")
COUNT = (
    "import sys; from hjepa_pl.__main__ import main\n"
    "try: main(sys.argv[1:])\n"
    "except SystemExit: pass\n"
    f"print('IMPORTED', len(sys.modules), [m for m in {HEAVY!r} if m in sys.modules])"
)


@pytest.mark.parametrize(
    "words",
    ["--help", "--version", "configs", "configs show quickstart", "export --help", "check --help", "bench --help",
     "sweep --help", "shards --help", "configs --help"],
)  # fmt: skip
def test_they_import_nothing_heavy(words) -> None:
    """At most 0.5 s of CPU, and a tenth of the 3,000 modules of torch and timm."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", COUNT, *words.split()], capture_output=True, text=True, check=True)
    after = os.times()
    count, heavy = re.search(r"IMPORTED (\d+) (\[.*\])", done.stdout).groups()
    assert (int(count) < 300, heavy) == (True, "[]"), done.stdout
    assert after.children_user - before.children_user < 0.5


def test_version_names_what_results_depend_on(capsys) -> None:
    import lightning
    import timm
    import torch

    assert main(["--version"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"hjepa_pl {hjepa_pl.__version__}\npython {sys.version.split()[0]}, ")
    for module in (torch, lightning, timm):
        assert f"{module.__name__} {module.__version__.split('+')[0]}" in shown
    assert "device: " in shown


def test_the_device_is_what_the_driver_lists(tmp_path) -> None:
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text("Model: \t\t NVIDIA H200\nIRQ: 3\n")
    assert _device(tmp_path) == "2 x NVIDIA H200"
    assert _device(tmp_path / "none").startswith(("CPU, ", "Apple GPU"))


def test_configs_are_listed_and_shown(tmp_path, monkeypatch, capsys) -> None:
    """From any folder; every config of the repository, with a line about it."""
    monkeypatch.chdir(tmp_path)
    assert main(["configs"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    files = (ROOT / "configs").rglob("*.yaml")
    assert lines.keys() == {p.relative_to(ROOT / "configs").with_suffix("").as_posix() for p in files}
    assert lines["quickstart"].startswith("Under two minutes on two CPU cores")
    assert max(map(len, lines.values())) <= 110
    assert main(["configs", "show", "quickstart"]) == 0
    assert capsys.readouterr().out.strip() == (ROOT / "configs" / "quickstart.yaml").read_text().strip()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["show", "quikstart"], "there is no config quikstart; did you mean quickstart?"),
        (["show"], "write hjepa configs to list them, or hjepa configs show NAME to print one."),
        (["quickstart"], "write hjepa configs to list them, or hjepa configs show NAME to print one."),
    ],
)
def test_wrong_words_are_one_sentence(words, sentence, capsys) -> None:
    assert main(["configs", *words]) == 2
    assert capsys.readouterr().err == f"hjepa configs: error: {sentence}\n"
