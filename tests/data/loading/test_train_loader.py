from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.data.augment.multicrop import Augmenters, ViewPlan
from hjepa_pl.data.loading.mixture import EpochPlan
from hjepa_pl.data.loading.train_data import TrainData, usable_size
from hjepa_pl.data.loading.train_loader import TrainLoader
from hjepa_pl.data.loading.trainer_info import TrainerInfo
from hjepa_pl.data.loading.views import make_views
from hjepa_pl.data.sources.images import ArrayImages, FileImages
from hjepa_pl.types import ConfigError

VIEWS = ViewPlan((Augmenters(Augmenter(AugmentationConfig(), 16, (0.5,) * 3, (0.25,) * 3, seed=3)),), 2)


def memory(n, side=16, channels=3, label=0):
    images = torch.randint(
        0, 256, (n, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(n)
    )
    return ArrayImages(images, torch.arange(n) + label, ["x"])


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        side = (40 + i, 30)
        Image.fromarray(rng.integers(0, 256, (*side, 3), dtype=np.uint8)).save(tmp_path / f"{i:02}.jpg")
    return FileImages([str(tmp_path / f"{i:02}.jpg") for i in range(12)], torch.arange(12) + 500, ["x"])


def make(sets, size, batch=4, position=lambda: 0, num_workers=0, keep_on=None, **trainer):
    plan = EpochPlan([len(s) for s in sets], [1.0] * len(sets), size, seed=1)
    data = TrainData(sets, [f"set{i}" for i in range(len(sets))], plan, VIEWS, 3)
    trainer = TrainerInfo(position=position, **trainer)
    return TrainLoader(data, batch_size=batch, num_workers=num_workers, trainer=trainer, device=keep_on)


def same(a, b):
    assert torch.equal(a.label, b.label)
    assert torch.equal(a.source, b.source)
    assert a.counters[:2] == b.counters[:2]
    assert torch.equal(a.counters.position, b.counters.position)
    for x, y in zip(make_views(a, VIEWS, 3)[0], make_views(b, VIEWS, 3)[0], strict=True):
        assert torch.equal(x, y)


def test_labels_images_and_counters_belong_together():
    sets = [memory(20), memory(30, side=24, channels=1, label=100)]
    batches = list(make(sets, 24))
    assert [b.counters.step for b in batches] == list(range(6))
    assert torch.cat([b.counters.position for b in batches]).tolist() == list(range(24))
    for batch in batches:
        assert ((batch.label >= 100) == (batch.source == 1)).all()
        for group in batch.groups:
            for row, image in zip(group.rows.tolist(), group.images[0], strict=True):
                source = int(batch.source[row])
                assert torch.equal(image, sets[source].images[int(batch.label[row]) - 100 * source])


def test_images_kept_on_a_device_are_gathered_there(files):
    """No second real device is here: `meta` shows where and of what shape, the host that they are the same."""
    sets = [memory(20), memory(30, label=100), memory(10, side=24), files]
    on_host, on_meta = (list(make(sets, 24, keep_on=torch.device(d))) for d in ("cpu", "meta"))
    for plain, host, meta in zip(make(sets, 24), on_host, on_meta, strict=True):
        same(plain, host)
        assert torch.equal(plain.label, meta.label)
        for a, b in zip(plain.groups, meta.groups, strict=True):
            assert torch.equal(a.rows, b.rows)
            assert [x.shape for x in a.images] == [x.shape for x in b.images]
            assert {x.device.type for x in b.images} == {"meta" if b.boxes is None else "cpu"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_images_kept_on_a_gpu_are_those_of_the_host(files):
    sets = [memory(20), memory(30, label=100), files]
    for plain, kept in zip(
        make(sets, 24), make(sets, 24, keep_on=torch.device("cuda"), device=torch.device("cuda")), strict=True
    ):
        for a, b in zip(plain.groups, kept.groups, strict=True):
            assert torch.equal(a.rows, b.rows)
            assert all(torch.equal(x, y.cpu()) for x, y in zip(a.images, b.images, strict=True))


@pytest.mark.parametrize("position", [0, 2, 5, 6, 15])
def test_from_a_position_it_is_the_tail_of_a_whole_run(files, position):
    sets = [memory(20), files]
    whole = [batch for epoch in range(3) for batch in make(sets, 24, position=lambda e=epoch: e * 6)]
    resumed = list(make(sets, 24, position=lambda: position))
    assert len(resumed) == 6 - position % 6
    for a, b in zip(whole[position:], resumed, strict=False):
        same(a, b)
    assert [b.counters.step for b in whole] == list(range(18))


def test_the_position_is_read_when_the_first_batch_is_asked_for():
    where = [0]
    iterator = iter(make([memory(20)], 20, position=lambda: where[0]))
    where[0] = 3
    assert next(iterator).counters.step == 3


def test_a_trainer_that_stops_earlier_goes_on_from_there():
    for limit in (3, 0.6):
        steps = []
        for start in (0, 3, 6):
            loader = make([memory(20)], 20, limit=limit, position=lambda: start)  # noqa: B023
            steps += [(b.counters.epoch, b.counters.step) for b in loader]
        assert steps == [(s // 5, s) for s in range(9)]


@pytest.mark.parametrize("world", [2, 4])
def test_several_ranks_draw_what_one_would(files, world):
    """So they are disjoint, and together the epoch."""
    sets = [memory(20), files]
    one = list(make(sets, 24, batch=8))
    ranks = [list(make(sets, 24, batch=8 // world, world_size=world, rank=r)) for r in range(world)]
    assert [len(r) for r in ranks] == [len(one)] * world == [3] * world
    drawn = torch.cat([torch.stack([b.source, b.label]) for r in ranks for b in r], dim=1)
    assert len(torch.unique(drawn, dim=1).T) == 24
    for batch, *parts in zip(one, *ranks, strict=True):
        for key in ("label", "source"):
            assert torch.equal(getattr(batch, key), torch.cat([getattr(p, key) for p in parts]))
        assert torch.equal(batch.counters.position, torch.cat([p.counters.position for p in parts]))
        whole = make_views(batch, VIEWS, 3)[0]
        for v in (0, 1):
            together = torch.cat([make_views(p, VIEWS, 3)[0][v] for p in parts])
            torch.testing.assert_close(whole[v], together, atol=1e-5, rtol=0)


def test_workers_change_nothing(files):
    sets = [memory(20, side=8), files]
    for a, b in zip(make(sets, 16), islice(make(sets, 16, num_workers=2), 4), strict=True):
        same(a, b)


def test_files_are_cropped_as_memory_is(files):
    """The worker's crop of a file is the device's crop of the same bytes, to the rounding of a grey level."""
    shapes = FileImages([files.path(3)] * 12, files.labels, ["x"])
    same_bytes = ArrayImages(torch.stack([shapes.read(i, 3) for i in range(12)]), files.labels, ["x"])
    uncoloured = AugmentationConfig(jitter_prob=0, gray=0, solarize=0)
    flat = ViewPlan((Augmenters(Augmenter(uncoloured, 16, (0.0,) * 3, (1.0,) * 3, seed=3)),), 2)
    views = []
    for images in (shapes, same_bytes):
        loader = make([images], 12, batch=12)
        if loader.reader is not None:
            loader.reader.plan = flat
        views.append(make_views(next(iter(loader)), flat, 3)[0])
    for a, b in zip(*views, strict=True):
        assert (a - b).abs().max() <= 1.1 / 255


def test_a_broken_file_is_named_and_replaced_by_the_same_other(files):
    with open(files.path(5), "wb") as file:
        file.write(b"junk")
    many = FileImages(np.concatenate([files._paths] * 2), torch.cat([files.labels] * 2), ["x"])
    with pytest.warns(
        UserWarning,
        match=r"set0: .*05.jpg cannot be decoded \(not an image\) and is replaced by another draw \(1 so far\)",
    ):
        first = list(make([many], 24))
    assert not any((b.label == 505).any() for b in first)
    with pytest.warns(UserWarning, match=r"05\.jpg"):
        again = list(make([many], 24))
    for a, b in zip(first, again, strict=True):
        same(a, b)


def test_many_broken_files_stop_the_run(files):
    for i in range(4):
        with open(files.path(i), "wb") as file:
            file.write(b"junk")
    loader = make([files], 12)
    message = r"set0: \d of 12 files cannot be decoded.*0\d.jpg"
    with pytest.warns(UserWarning, match="cannot be decoded"), pytest.raises(ConfigError, match=message):
        list(loader)


def test_an_epoch_smaller_than_a_batch_is_refused():
    assert usable_size(100, 8, 3) == 96
    with pytest.raises(
        ConfigError, match=r"invalid `data.batch_size=64`: x 2 process\(es\) is more than the 100 images.*at most 50"
    ):
        usable_size(100, 64, 2)
