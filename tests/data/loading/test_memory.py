"""Images in memory are there once: workers have no copy of them, and probes share the training sets'.

`tests/benchmarks/memory.py` measures the same with STL-10's 113,000 images.
"""

import multiprocessing
import os
import pickle
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.data.loading.eval_loader import CleanRows
from hjepa_pl.data.sources.images import ArrayImages, FileImages
from tests.benchmarks.memory import children, measured
from tests.data.loading.test_train_loader import make, same

MIB = 2**20
linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells shared pages apart")


@pytest.fixture
def sets(tmp_path):
    """200 MiB of images in memory, and a few in files."""
    count = 200 * MIB // (3 * 96 * 96)
    images = torch.randint(0, 256, (count, 3, 96, 96), dtype=torch.uint8)
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg")
    files = FileImages([str(tmp_path / f"{i}.jpg") for i in range(8)], torch.arange(8) + count, ["x"])
    return [ArrayImages(images, torch.arange(count), ["x"]), files]


@linux
def test_workers_have_no_copy_of_images_in_memory(sets):
    """The proportional set size of all processes: each page counts once, however many share it."""
    totals, others = {}, set(children(os.getpid()))  # others: of earlier tests
    for workers in (0, 2, 4):
        batches = iter(make(sets, 800, batch=8, num_workers=workers))
        assert len(list(islice(batches, 10))) == 10
        processes = [process for process in children(os.getpid()) if process not in others]
        assert len(processes) == workers
        totals[workers] = (measured(os.getpid()) + sum(map(measured, processes))) / MIB
        batches.close()
    assert totals[0] > 200
    assert totals[2] - totals[0] < 200  # two copies would be 400
    assert totals[4] - totals[0] < 200  # and four 800


def test_what_travels_to_a_worker_that_starts_anew_is_small(sets):
    """By `spawn` and `forkserver` (the default from Python 3.14 on) workers get the dataset as a pickle."""
    loader = make(sets, 16)
    dataset = loader._file_loader(loader.reader, len, range(4)).dataset
    assert dataset.reader is loader.reader
    assert len(pickle.dumps(dataset)) < MIB


def test_workers_that_start_anew_read_the_same(sets):
    loader = make(sets, 16)
    expected = list(loader)
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        loader.num_workers = 1
        for a, b in zip(expected, loader, strict=True):
            same(a, b)
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_a_set_that_is_named_several_times_is_loaded_once(tmp_path):
    for i in range(40):
        path = tmp_path / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(path)
    (tmp_path / "val").symlink_to(tmp_path / "train")
    folder = {"name": "folder", "root": str(tmp_path)}
    data = MultiDatasetDataModule(
        [{"name": "fake"}, folder, {"name": "digits"}], img_size=8, in_chans=3, batch_size=8,
        probe=[{"name": "fake"}, folder, {"name": "digits"}, {"name": "digits", "title": "again", "max_train": 100}],
    )  # fmt: skip
    data.setup()
    trained = [s.images.data_ptr() for s in data._sets.train]
    judged = [images.images.data_ptr() for images, _ in data._sets.probe]
    assert judged[::2] == [*trained, trained[2]]  # the banks
    assert judged[3] == trained[1]  # one folder under two names
    assert judged[5] == judged[7] not in trained  # the test splits of digits
    loaders = data.val_dataloader()
    assert [loader.num_workers for loader in loaders] == [0] * 8  # so no worker has a probe set either
    assert all(isinstance(loader.dataset, CleanRows) for loader in loaders)
