"""Trees of folders: class lists, subsets, and images held out for probes."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.data.sources.class_folders import imagenet100_classes
from hjepa_pl.data.sources.images import FileImages
from hjepa_pl.data.sources.registry import load_dataset
from hjepa_pl.types import ConfigError

GRAY = {"gray": 0.0, "jitter": (0.4, 0.4, 0.0, 0.0)}


def write(folder, classes, count=4, sizes=1):
    """Write images that are all different, of so many sizes: of one size they are read into memory."""
    for c in classes:
        i = ord(os.path.basename(c)[:1] or "-")
        (folder / c).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            pixels = np.full((8 + k % sizes, 8, 3), i, np.uint8)
            pixels[0, 0] = (k % 256, k // 256, i)
            Image.fromarray(pixels).save(folder / c / f"{k:03d}.png")
    return str(folder)


def data(datasets, **kwargs):
    given = {"batch_size": 4, "img_size": 8, "in_chans": 3, "augmentation": {}}
    module = MultiDatasetDataModule(datasets, **(given | kwargs))
    module.setup("fit")
    return module


def marks(images, index=None):
    """Return (class, number) of every image, which its first pixel tells."""
    places = range(len(images)) if index is None else index.tolist()
    found = [images.read(i, 3) if isinstance(images, FileImages) else images.images[i] for i in places]
    return {(int(x[2, 0, 0]), int(x[0, 0, 0]) + 256 * int(x[1, 0, 0])) for x in found}


@pytest.mark.parametrize("sizes", [1, 2])
def test_a_class_list_gives_folders_order_and_names(tmp_path, sizes):
    root = write(tmp_path / "t", ["ant", "bee", "my cat", "dog"], sizes=sizes)
    listed = tmp_path / "list.txt"
    listed.write_text("dog  A dog, or two\n\nmy cat\tthe cat\nant\n")
    images = load_dataset("folder", root, classes=str(listed))
    assert images.classes == ["A dog, or two", "the cat", "ant"]
    assert images.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert {c for c, _ in marks(images)} == set(map(ord, "amd"))
    assert len(load_dataset("folder", root)) == 16


def test_a_class_list_for_imagenet_and_in_place_of_the_hundred(tmp_path):
    write(tmp_path / "in/train", ["n1", "n2", "n3"])
    (tmp_path / "list.txt").write_text("n3\r\nn1\r\n")
    for name in ("imagenet", "imagenet100"):
        images = load_dataset(name, str(tmp_path / "in"), classes=str(tmp_path / "list.txt"))
        assert images.classes == ["n3", "n1"]
        assert len(images) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no class; write one class folder a line"),
        ("ant\nant\n", "names ant twice"),
        ("ant\nemu\nelk\n", "names emu, which is no folder in .*, and 1 more;"),
        ("ant\n../t/bee\n", "names ../t/bee, which is no folder"),
        (b"\xff\xfe\x00", "cannot be read as a text file"),
        (None, "cannot be read as a text file"),
    ],
)
def test_class_lists_that_are_refused(tmp_path, text, message):
    root = write(tmp_path / "t", ["ant", "bee"])
    if text is not None:
        (tmp_path / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        load_dataset("folder", root, classes=str(tmp_path / "list.txt"))
    assert "\n" not in str(caught.value)


def test_a_class_list_for_what_has_no_folders_is_refused():
    for given in ({"datasets": [{"name": "digits", "classes": "x"}]}, {"probe": [{"name": "cifar10", "classes": "x"}]}):
        with pytest.raises(
            ConfigError,
            match=r"invalid `\w+.classes=x`: has an effect only with name=imagenet100, imagenet or folder; remove it",
        ):
            MultiDatasetDataModule(**({"datasets": [{"name": "fake"}]} | given))


@pytest.mark.parametrize("sizes", [1, 3])
def test_a_fraction_of_files_keeps_the_share_of_every_class(tmp_path, sizes):
    root = write(tmp_path / "t", ["ant", "bee"], count=40, sizes=sizes)
    write(tmp_path / "t", ["cow"], count=20, sizes=sizes)
    drawn = [data([{"name": "folder", "root": root, "fraction": 0.1}], seed=seed)._sets.train[0] for seed in (1, 1, 2)]
    assert torch.bincount(drawn[0].labels).tolist() == [4, 4, 2]
    assert marks(drawn[0]) == marks(drawn[1]) != marks(drawn[2])


def test_imagenet100_looks_into_its_own_folders_only(tmp_path, monkeypatch):
    write(tmp_path / "train", imagenet100_classes(), count=1)
    looked, real = [], os.scandir

    def counted(path):
        looked.append(os.path.basename(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", counted)
    load_dataset("imagenet100", str(tmp_path))
    assert sorted(looked) == imagenet100_classes()
    for i in range(900):
        (tmp_path / "train" / f"m{i:08d}").mkdir()
    looked.clear()
    images = load_dataset("imagenet100", str(tmp_path))
    assert sorted(looked) == imagenet100_classes()
    assert images.labels.tolist() == list(range(100))


@pytest.mark.parametrize("sizes", [1, 3])
def test_what_a_probe_holds_out_is_not_trained_on(tmp_path, sizes):
    root = write(tmp_path / "t", ["ant", "bee"], count=40, sizes=sizes)
    write(tmp_path / "t", ["cow"], count=20, sizes=sizes)
    (tmp_path / "same").symlink_to(root)  # another way to say it
    module = data(
        [{"name": "folder", "root": str(tmp_path / "same")}],
        probe=[{"name": "folder", "root": root, "holdout": 0.1, "title": "own"}],
    )
    (bank, learned), (test, judged) = module._sets.probe
    assert [tuple(s) for s in module.probe_splits] == [("own", "train", 3, 90), ("own", "test", 3, 10)]
    assert torch.bincount(test.labels[judged]).tolist() == [4, 4, 2]
    held, trained = marks(test, judged), marks(module._sets.train[0])
    assert len(held) == 10
    assert len(trained) == 90
    assert not held & trained
    assert marks(bank, learned) == trained
    assert module.settings()["held_out"] == [{"root": root, "classes": None, "share": 0.1}]  # as it must be resumed
    again = data(
        [{"name": "folder", "root": root, "fraction": 0.5}],
        probe=[{"name": "folder", "root": root, "holdout": 0.1}],
    )
    assert marks(*again._sets.probe[1]) == held
    assert not marks(again._sets.train[0]) & held
    other = data([{"name": "fake"}], probe=[{"name": "folder", "root": root, "holdout": 0.1}], seed=5)
    assert marks(*other._sets.probe[1]) != held


@pytest.mark.parametrize("below", [True, False])
def test_what_would_train_on_held_out_images_in_another_way_is_refused(tmp_path, below):
    write(tmp_path / "t", ["x/ant", "x/bee"], count=10)
    roots = [str(tmp_path / "t"), str(tmp_path / "t/x")]
    with pytest.raises(
        ConfigError, match=r"images that the probe folder holds out; use the same root and classes for both"
    ):
        data(
            [{"name": "folder", "root": roots[below]}],
            probe=[{"name": "folder", "root": roots[not below], "holdout": 0.2}],
        )
    (tmp_path / "list.txt").write_text("ant\n")
    with pytest.raises(ConfigError, match="use the same root and classes for both"):
        data(
            [{"name": "folder", "root": roots[1], "classes": str(tmp_path / "list.txt")}],
            probe=[{"name": "folder", "root": roots[1], "holdout": 0.2}],
        )


def test_holdout_where_it_does_not_belong_is_refused(tmp_path):
    root = write(tmp_path / "t/train", ["ant", "bee"], count=10)
    for datasets in ([{"name": "fake"}], [{"name": "folder", "root": str(tmp_path / "t")}]):
        with pytest.raises(ConfigError, match=r"has the split folder train; remove holdout, or set root to .*/t/train"):
            data(datasets, probe=[{"name": "folder", "root": str(tmp_path / "t"), "holdout": 0.1}])
    held = [{"name": "folder", "root": root, "holdout": 0.1}]
    assert len(data([{"name": "folder", "root": str(tmp_path / "t")}], probe=held)._sets.train[0]) == 18
    for value in (0, 1.0, -0.1, "half"):
        with pytest.raises(ConfigError, match="holdout"):
            data([{"name": "fake"}], probe=[{"name": "folder", "root": root, "holdout": value}])
    with pytest.raises(ConfigError, match="is for folder only, other datasets have a test split; remove it"):
        data([{"name": "fake"}], probe=[{"name": "digits", "holdout": 0.1}])
    with pytest.raises(
        ConfigError, match=r"there is no folder .*test for the split test; make it, or set holdout for a probe"
    ):
        data([{"name": "fake"}], probe=[{"name": "folder", "root": root}])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["ant"], "The probe folder has images of a single class"),
        ([""], "The probe folder has images without a label"),
        (["ant", "bee"], "The probe folder holds out none or all of its images"),
    ],
)
def test_probes_with_nothing_to_tell_apart_are_refused(tmp_path, classes, message):
    root = write(tmp_path / "t", classes, count=1 if len(classes) == 2 else 10)
    with pytest.raises(ConfigError, match=message):
        data([{"name": "fake"}], probe=[{"name": "folder", "root": root, "holdout": 0.2}])
