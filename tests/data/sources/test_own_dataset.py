"""A dataset of a user's own module, by its import path."""

import pytest
import torch

from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.data.sources.images import ArrayImages
from hjepa_pl.data.sources.registry import DATASETS, Dataset, load_dataset
from hjepa_pl.types import ConfigError
from tests.data.test_datamodule import Watcher, trainer

SOURCE = '''
import io
import os

import numpy as np
import torch
from PIL import Image

from hjepa_pl.data.sources.decode import ImageFile
from hjepa_pl.data.sources.images import ArrayImages


def blocks(root, split):
    assert os.path.isabs(root) and split in ("train", "test")
    values = torch.arange(24, dtype=torch.uint8) * (10 if split == "train" else 9)
    return ArrayImages(values.view(-1, 1, 1, 1).repeat(1, 3, 16, 16), torch.arange(24) % 2, ["even", "odd"])


class Drawn:
    """Images that are encoded in memory, so neither of the package's classes."""

    in_memory = streamed = False

    def __init__(self, values):
        self.values, self.labels, self.classes = values, values % 2 + 500, ["x"]

    def __len__(self):
        return len(self.values)

    def subset(self, index):
        return Drawn(self.values[index])

    def item(self, index):
        return Encoded(int(self.values[index]))


class Encoded:
    def __init__(self, value):
        self.value, self.path, self.label = value, f"drawn {value}", value % 2 + 500

    def open(self):
        if self.value == 3:
            raise OSError("three cannot be drawn")
        buffer = io.BytesIO()
        Image.fromarray(np.full((40, 30, 3), self.value * 5, np.uint8)).save(buffer, "PNG")
        return ImageFile(buffer.getvalue())


def drawn(root, split):
    return Drawn(torch.arange(24))


def nothing(root, split):
    return [1, 2, 3]


constant = 3
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_dataset.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_dataset"


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
def test_trains_and_probes_by_import_path(tmp_path, module) -> None:
    root = str(tmp_path)
    data = MultiDatasetDataModule(
        [{"name": f"{module}.blocks", "root": root}, {"name": f"{module}.drawn", "fraction": 0.5}],
        batch_size=8,
        epoch_size=16,
        num_workers=0,
        max_bad_fraction=0.2,
        augmentation="none",
        probe=[{"name": f"{module}.blocks", "root": root, "title": "mine"}],
    )
    data.prepare_data()
    watcher, runner = Watcher(), trainer(tmp_path)
    runner.fit(watcher, data)
    assert runner.global_step == 2
    for batch in watcher.batches:
        for image, label, source in zip(batch.views[0], batch.label, batch.source, strict=True):
            assert (label >= 500) == (source == 1)
            if source == 0:  # the image of the label
                value = (image[0, 0, 0] * 0.229 + 0.485) * 255 / 10
                assert round(value.item()) % 2 == label
    assert [tuple(s) for s in data.probe_splits] == [("mine", "train", 2, 24), ("mine", "test", 2, 24)]
    assert {i for i, _ in watcher.clean} == {0, 1}


def test_registered_under_a_name(monkeypatch) -> None:
    def ramp(root: str, split: str) -> ArrayImages:
        return ArrayImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4), list("abcd"))

    monkeypatch.setattr(DATASETS, "_parts", dict(DATASETS))
    DATASETS["ramp"] = ramp
    assert len(load_dataset("ramp", "anywhere")) == 4
    DATASETS["embedded_ramp"] = Dataset(ramp, embedded=True)
    with pytest.raises(ConfigError, match=r"invalid `datasets.root=x`: has no effect with name=embedded_ramp"):
        MultiDatasetDataModule([{"name": "embedded_ramp", "root": "x"}])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_dataset.absent", r"invalid `datasets.name=my_dataset.absent`: cannot be imported"),
        ("no_such_module.load", r"invalid `datasets.name=no_such_module.load`: cannot be imported"),
        ("my_dataset.constant", r"invalid `datasets.name=my_dataset.constant`: must be a function of \(root, split\)"),
        ("stl11", r"invalid `datasets.name=stl11`: must be digits, .* or webdataset, or the import .* mean stl10\?"),
    ],
)
def test_rejected_before_any_file_is_read(module, name, message) -> None:
    with pytest.raises(ConfigError, match=message):
        MultiDatasetDataModule([{"name": name}])


def test_a_function_that_returns_no_images_is_rejected(module) -> None:
    data = MultiDatasetDataModule([{"name": f"{module}.nothing"}], img_size=8, in_chans=3)
    with pytest.raises(ConfigError, match=r"returned list, must return ArrayImages, FileImages"):
        data.setup("fit")


def test_each_tree_is_looked_up_once(tmp_path, monkeypatch) -> None:
    from PIL import Image

    import hjepa_pl.data.sources.registry as registry

    for i in range(40):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8 + i % 3, 8), (i, i, i)).save(path)
    calls, find_tree = [], registry.find_tree
    monkeypatch.setattr(registry, "find_tree", lambda *args: calls.append(args) or find_tree(*args))
    folder = {"name": "folder", "root": str(tmp_path)}
    data = MultiDatasetDataModule(
        [folder, {"name": "fake"}], img_size=8, in_chans=3, batch_size=8, num_workers=0,
        probe=[{**folder, "holdout": 0.2}],
    )  # fmt: skip
    data.setup("fit")
    assert len(calls) == 1
