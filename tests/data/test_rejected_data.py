"""Rejected data through the real command line: one sentence with the fix, and status 2."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from hjepa_pl.__main__ import main
from tests.cli.test_cli import TINY
from tests.data.loading.test_shard_stream import write_shards


def tree(*classes, count=12):
    """Write images of two sizes, which stay in files; the class "" lies directly in the split."""
    for split in ("train", "val"):
        for name in classes:
            folder = Path("pictures", split, name)
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 256, (120 + i % 2, 120), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")


def empty():
    Path("pictures").mkdir()
    Path("pictures/notes.txt").write_text("no image")


def junk():
    tree("cat", "dog")
    for path in list(Path("pictures/train").rglob("*.png"))[::3]:
        path.write_bytes(path.read_bytes()[:70])


def shards(*numbers):
    for n in numbers:
        write_shards(Path(f"shards{n}"), shards=n, per_shard=16)


FOLDER = "{name: folder, root: pictures}"
CASES = {
    "no images": (empty, f"datasets=[{FOLDER}]", "pictures holds no image; set root to a folder with images "
                  "(dataset folder)."),
    "too many bad files": (junk, f"datasets=[{FOLDER}]", "files cannot be decoded, more than max_bad_fraction=0.1; fix"
                           " or remove pictures/train/"),
    "one class": (lambda: tree("cat"), f"probe=[{FOLDER}]", "The probe folder has images of a single class; use a "
                  "dataset with at least two."),
    "no labels": (lambda: tree(""), f"probe=[{FOLDER}]", "The probe folder has images without a label; use a dataset "
                  "with one folder per class."),
    "other classes": (lambda: (tree("cat", "dog"), Path("pictures/val/cat").rename("pictures/val/emu")),
                      f"probe=[{FOLDER}]", "The probe folder has different classes in train and test; use"),
    "weights by name": (None, "datasets={digits: 0.5, cifar10: 0.5}",
                        "invalid `data.datasets={digits: 0.5, cifar10: 0.5}`: must be a list of mappings"),
    "a list of weights": (None, "weights=[0.5, 0.5]", "data does not accept 'weights'"),
    "more weights than sets": (None, "datasets=[{name: digits, weight: [0.5, 0.5]}]",
                               "invalid `data.datasets.weight=[0.5, 0.5]`: must be a number > 0"),
    "a weight without a set": (None, "datasets=[{name: digits}, {weight: 2}]", "data.datasets lacks the key 'name'"),
    "a weight of one set": (None, "datasets=[{name: digits, weight: 0.5}]", "`datasets.weight=0.5`: has no effect with "
                            "one dataset; remove it."),
    "a weight of nothing": (None, "datasets=[{name: digits}, {name: fake, weight: 0}]",
                            "invalid `datasets.weight=0`: must be a number > 0 (dataset fake)."),
    "a weight too small": (None, "datasets=[{name: digits}, {name: digits_canvas, weight: 1.0e-6}]",
                           "the weight of dataset number 2 is 1e-06 of the mixture, less than one image in an epoch "
                           "of 128; raise datasets.weight or epoch_size, or remove the dataset."),
    "an unknown set": (None, "datasets=[{name: digits}, {name: stl11, weight: 2}]",
                       "invalid `datasets.name=stl11`: must be digits, digits_canvas, fake, cifar10, "),
    "no shards": (lambda: Path("none").mkdir(), "datasets=[{name: webdataset, root: none}]",
                  "invalid `datasets.root=none`: there is no such shard; set it to a path,"),
    "fewer shards than workers": (lambda: shards(2), "datasets=[{name: webdataset, root: shards2}]",
                                  "a dataset has 2 shard(s), fewer than num_workers=3 x 1 process(es), each of which "
                                  "reads shards of its own; lower num_workers to 2, or make more"),
}  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Return a function that starts `hjepa fit` in a folder of its own and returns its one sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hjepa"])

    def rejected(*more):
        Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
        assert main(["fit", "--config", "tiny.yaml", *more]) == 2
        out, error = capfd.readouterr()
        assert "Traceback" not in out + error
        sentences = [line for line in error.splitlines() if line.startswith("hjepa: error: ")]
        assert len(sentences) == 1, error
        assert error.rstrip().endswith(sentences[0])
        return sentences[0]

    return rejected


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
@pytest.mark.parametrize("case", CASES)
def test_rejected_in_one_sentence(run, case) -> None:
    prepare, given, expected = CASES[case]
    if prepare is not None:
        prepare()
    workers = 3 if "webdataset" in given else 0
    sentence = run(f"--data.init_args.{given}", *([f"--data.init_args.num_workers={workers}"] if workers else []))
    assert expected in sentence


def test_a_folder_that_may_not_be_read(run) -> None:
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o777)
        os.chdir(top)
        tree("cat")
        Path("pictures/train/closed").mkdir(mode=0o000)
        root = os.geteuid() == 0
        if root:  # who may read all
            os.seteuid(65534)
        try:
            sentence = run(f"--data.init_args.datasets=[{FOLDER}]")
        finally:
            if root:
                os.seteuid(0)
        assert "the folder pictures/train/closed cannot be read; change its permissions, or move it away." in sentence
