"""Shards in the official format, written by tarfile, read by real workers."""

import functools
import io
import json
import shutil
import tarfile
import threading
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.data.augment.multicrop import Augmenters, ViewPlan
from hjepa_pl.data.config import DatasetConfig
from hjepa_pl.data.loading import shard_stream
from hjepa_pl.data.loading.mixture import EpochPlan
from hjepa_pl.data.loading.shard_stream import ShardStream
from hjepa_pl.data.loading.train_data import TrainData
from hjepa_pl.data.loading.train_loader import TrainLoader
from hjepa_pl.data.loading.trainer_info import TrainerInfo
from hjepa_pl.data.loading.views import make_views
from hjepa_pl.data.loading.worker_slots import slot_positions
from hjepa_pl.data.sources.images import ArrayImages, FileImages
from hjepa_pl.data.sources.shards import ShardImages, count_samples, list_shards, open_shards
from hjepa_pl.data.sources.tar import read_shard
from hjepa_pl.types import ConfigError

VIEWS = ViewPlan((Augmenters(Augmenter(AugmentationConfig(), 8, (0.5,) * 3, (0.25,) * 3, seed=3)),), 2)


def encoded(value, kind="PNG"):
    buffer = io.BytesIO()
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 256, (12 + value % 3, 14, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_shards(folder, shards=8, per_shard=6, broken=()):
    """Write images of which number n has the label n, as PNG; those in `broken` are junk."""
    folder.mkdir(parents=True, exist_ok=True)
    for s in range(shards):
        members = []
        for n in range(s * per_shard, (s + 1) * per_shard):
            content = b"junk" if n in broken else encoded(n)
            members += [(f"{n:05}.png", content), (f"{n:05}.cls", str(n).encode())]
        write_tar(folder / f"{s:03}.tar", members)
    return sorted(str(p) for p in folder.glob("*.tar"))


def labels_of(stream, epoch, slot, n):
    return [stream.sample(epoch * stream.batches + slot, place).label for place in range(n)]


def stream_of(shards, samples, *, seed=1, buffer=1000, drawn=48, rank=0, world_size=1, slots=1):
    images = ShardImages(shards, samples, buffer)
    return ShardStream(
        images, 0, drawn=drawn, batches=100, seed=seed, rank=rank, world_size=world_size, slots=slots
    )  # fmt: skip


def loader(sets, size, batch=4, position=0, weights=None, world_size=1, rank=0, num_workers=0):
    plan = EpochPlan([min(len(s), size) for s in sets], weights or [1.0] * len(sets), size, seed=1)
    data = TrainData(sets, [f"set{i}" for i in range(len(sets))], plan, VIEWS, 3)
    trainer = TrainerInfo(rank, world_size, position=lambda: position)
    return TrainLoader(data, batch_size=batch, num_workers=num_workers, trainer=trainer)


def same(a, b):
    assert torch.equal(a.label, b.label)
    assert torch.equal(a.source, b.source)
    assert a.counters[:2] == b.counters[:2]
    for x, y in zip(make_views(a, VIEWS, 3)[0], make_views(b, VIEWS, 3)[0], strict=True):
        assert torch.equal(x, y)


# -------------------------------------------------------------------------------------------------------- one stream


def test_each_pass_has_every_sample_once_and_starts_over_in_another_order(tmp_path):
    stream = stream_of(write_shards(tmp_path), 48, buffer=10)
    labels = labels_of(stream, 0, 0, 96)
    assert sorted(labels[:48]) == sorted(labels[48:]) == list(range(48))
    assert labels[:48] != labels[48:]


def test_the_order_is_a_function_of_seed_and_epoch(tmp_path):
    shards = write_shards(tmp_path)
    first = labels_of(stream_of(shards, 48), 2, 0, 48)
    again = stream_of(shards, 48)
    labels_of(again, 0, 0, 5)
    assert labels_of(again, 2, 0, 48) == first
    assert labels_of(again, 3, 0, 48) != first
    assert labels_of(stream_of(shards, 48, seed=2), 2, 0, 48) != first


def test_it_is_shuffled_through_the_buffer(tmp_path):
    shards = write_shards(tmp_path)
    plain = labels_of(stream_of(shards, 48, buffer=1), 0, 0, 48)
    order = [int(s[-7:-4]) for s in stream_of(shards, 48).order(0)]
    assert plain == [s * 6 + i for s in order for i in range(6)]
    assert order != sorted(order)
    small = labels_of(stream_of(shards, 48, buffer=12), 0, 0, 48)
    assert small != plain
    # A sample cannot leave before it has come in.
    assert all(plain.index(label) <= at + 12 for at, label in enumerate(small))
    mixed = labels_of(stream_of(shards, 48, buffer=48), 0, 0, 6)
    assert len({label // 6 for label in mixed}) > 2


def test_ranks_and_workers_read_shards_of_their_own(tmp_path):
    shards = write_shards(tmp_path)
    seen = []
    for rank in range(4):
        stream = stream_of(shards, 48, rank=rank, world_size=4, slots=2)
        for slot in (0, 1):
            own = labels_of(stream, 1, slot, 12)
            assert sorted(own[:6]) == sorted(own[6:])  # one shard each: the second pass is the same shard
            seen += own[:6]
    assert sorted(seen) == list(range(48))


def test_a_short_epoch_goes_on_through_the_shards(tmp_path):
    shards = [f"{i}.tar" for i in range(12)]
    stream = stream_of(shards, 120, drawn=30)
    heads = [stream.order(epoch)[:3] for epoch in range(8)]
    for lap in (heads[:4], heads[4:]):
        assert sorted(s for head in lap for s in head) == sorted(shards)
    assert heads[:4] != heads[4:]
    assert all(sorted(stream.order(epoch)) == sorted(shards) for epoch in range(5))


def test_places_run_through_each_slot(tmp_path):
    source = torch.from_numpy(EpochPlan([99, 99], [1, 1], 48, seed=5).draw(0)[0])
    places = torch.full((48,), -1)
    places[source == 1] = slot_positions(source, 1, 4, 2, 3)
    for rank in (0, 1):
        for slot in range(3):
            own = places.view(6, 2, 4)[slot::3, rank].flatten()
            assert own[own >= 0].tolist() == list(range(int((own >= 0).sum())))
    assert (slot_positions(source, 1, 4, 2, 3) < 0).sum() == 0


# --------------------------------------------------------------------------------------------------------- the loader


def test_shares_of_a_mixture_are_exact_and_the_stream_fills_its_positions(tmp_path):
    memory = ArrayImages(torch.zeros(20, 3, 8, 8, dtype=torch.uint8), torch.arange(20) + 1000, ["x"])
    shards = ShardImages(write_shards(tmp_path), 48)
    batches = list(loader([memory, shards], 96, weights=[0.5, 0.5], num_workers=2))
    source, label = (torch.cat([getattr(b, key) for b in batches]) for key in ("source", "label"))
    assert torch.bincount(source).tolist() == [48, 48]
    assert ((label >= 1000) == (source == 0)).all()
    assert len(batches) == 24
    counts = Counter(label[source == 1].tolist())
    assert sum(counts.values()) == 48
    assert len(counts) > 36  # but for what one slot has left over and the other has twice


def test_an_epoch_over_4_ranks_and_2_workers_is_one_pass(tmp_path):
    shards = ShardImages(write_shards(tmp_path, shards=8, per_shard=8), 64)
    per_rank = [list(loader([shards], 64, world_size=4, rank=r, num_workers=2)) for r in range(4)]
    assert [len(b) for b in per_rank] == [4] * 4
    assert sorted(torch.cat([b.label for part in per_rank for b in part]).tolist()) == list(range(64))


def test_processes_without_workers_read_what_one_worker_does(tmp_path):
    shards = ShardImages(write_shards(tmp_path), 48)
    for a, b in zip(loader([shards], 48), loader([shards], 48, num_workers=1), strict=True):
        same(a, b)


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("position", [3, 12, 17])
def test_from_a_position_it_is_the_tail_of_a_whole_run(tmp_path, workers, position):
    sets = [ShardImages(write_shards(tmp_path, broken=(7, 30, 31)), 48, 9)]
    with pytest.warns(UserWarning, match=r"\.tar/000\d\d cannot be decoded"):
        whole = [b for at in (0, 12) for b in loader(sets, 48, position=at, num_workers=workers)]
    resumed = list(loader(sets, 48, position=position, num_workers=workers))
    assert len(resumed) == 12 - position % 12
    for a, b in zip(whole[position:], resumed, strict=False):
        same(a, b)


def test_broken_members_are_named_and_replaced_by_the_next(tmp_path):
    shards = write_shards(tmp_path, broken=(5,))
    with pytest.warns(UserWarning, match=r"set0: .*000.tar/00005 cannot be decoded .* and is replaced"):
        labels = torch.cat([b.label for b in loader([ShardImages(shards, 48, 1)], 48)]).tolist()
    counts = Counter(labels)
    assert 5 not in counts
    assert len(counts) == 47
    assert sorted(counts.values()) == [1] * 46 + [2]


def test_members_that_break_off_while_they_are_decoded_cost_no_second_reading(tmp_path, monkeypatch):
    """A good header and no end: of 60 samples in one shard every fifteenth; the shard is read from its start once."""
    whole = [encoded(n, "JPEG") for n in range(60)]
    write_tar(
        tmp_path / "x.tar", [(f"{n:02}.jpg", c[: len(c) // 2] if n % 15 == 14 else c) for n, c in enumerate(whole)]
    )
    readings = []
    plain = shard_stream.read_shard
    monkeypatch.setattr(shard_stream, "read_shard", lambda shard: readings.append(shard) or plain(shard))
    images = ShardImages([str(tmp_path / "x.tar")], 60)
    with pytest.warns(UserWarning, match="cannot be decoded"):
        batches = list(loader([images], 60, batch=20))
    assert len(batches) == 3
    assert len(readings) <= 2  # the pass, and the next one that the shuffle buffer looks into for the last stand-in


def test_too_many_broken_members_stop_the_run(tmp_path):
    shards = ShardImages(write_shards(tmp_path, broken=range(0, 48, 4)), 48)
    with pytest.warns(UserWarning, match="cannot be decoded"), pytest.raises(ConfigError, match=r"set0: \d+ of 48"):
        list(loader([shards], 480))


def test_a_shard_that_breaks_off_counts_as_one_broken_member(tmp_path):
    shards = write_shards(tmp_path)
    whole = (tmp_path / "003.tar").read_bytes()
    (tmp_path / "003.tar").write_bytes(whole[: 3 * 2560 + 800])
    with pytest.warns(UserWarning, match=r"003.tar \(truncated: unexpected end of data\) cannot be decoded"):
        labels = torch.cat([b.label for b in loader([ShardImages(shards, 48)], 48)]).tolist()
    assert len(labels) == 48
    assert set(range(48)) - set(labels) <= set(range(18, 24))


def test_a_streamed_file_is_cropped_as_the_same_file_is(tmp_path):
    shards = ShardImages(write_shards(tmp_path, shards=1, per_shard=1), 1)
    (tmp_path / "x.png").write_bytes(encoded(0))
    files = FileImages([str(tmp_path / "x.png")] * 8, torch.zeros(8, dtype=torch.int64), ["x"])
    for a, b in zip(loader([shards], 8), loader([files], 8), strict=True):
        same(a, b)


# --------------------------------------------------------------------------------------------- what a shard may hold


def test_kinds_of_images_and_labels(tmp_path):
    write_tar(
        tmp_path / "x.tar",
        [
            *[(f"{k}.{kind}", encoded(k, kind)) for k, kind in enumerate(["png", "jpeg", "webp", "bmp", "tiff"])],
            ("p.ppm", encoded(9, "PPM")),
            ("sub/a.JPG", encoded(1, "JPEG")),
            ("sub/a.json", json.dumps({"label": 3, "caption": "a"}).encode()),
            ("sub/b.cls", b" 12\n"),
            ("sub/b.jpg", encoded(2, "JPEG")),
            ("text.txt", b"no image"),
            ("odd.jpg", encoded(2, "JPEG")),
            ("odd.cls", b"dog"),
            ("__meta__", b"skipped"),
        ],
    )  # fmt: skip
    samples = list(read_shard(str(tmp_path / "x.tar")))
    keys = [s.path.split("x.tar/")[1] for s in samples]
    assert keys == ["0", "1", "2", "3", "4", "p", "sub/a", "sub/b", "odd"]
    assert [s.label for s in samples] == [-1] * 6 + [3, 12, -1]
    assert all(s.open().pixels(3).shape[0] == 3 for s in samples)
    assert count_samples([str(tmp_path / "x.tar")]) == 9


# --------------------------------------------------------------------------------------------------- where they lie


@pytest.fixture
def server(tmp_path):
    """A web server of the folder `tmp_path`."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()


def test_paths_globs_folders_and_braces(tmp_path, monkeypatch):
    shards = write_shards(tmp_path / "s", shards=3)
    for root in (f"{tmp_path}/s", f"{tmp_path}/s/*.tar", f"{tmp_path}/s/{{000..002}}.tar", f"file:{tmp_path}/s/*.tar"):
        assert list_shards(root) == shards
        assert len(open_shards(root)) == 18
    assert list_shards("http://host/{00..01}.tar") == ["http://host/00.tar", "http://host/01.tar"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list_shards("~/s/*.tar") == shards


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads URLs by curl")
def test_a_url_and_a_pipe_give_what_the_files_do(tmp_path, server):
    shards = write_shards(tmp_path, shards=2)
    plain = [s.content for shard in shards for s in read_shard(shard)]
    for root in (f"{server}/{{000..001}}.tar", f"pipe:cat {tmp_path}/{{000..001}}.tar"):
        config = DatasetConfig(name="webdataset", root=root, samples=12)
        found = open_shards(str(config.root), config.samples, config.shuffle_buffer)
        assert [s.content for shard in found.shards for s in read_shard(shard)] == plain
        labels = torch.cat([b.label for b in loader([found], 12, batch=6, num_workers=2)])
        assert sorted(labels.tolist()) == list(range(12))
    failing = list(read_shard(f"pipe:cat {shards[0]}; exit 3"))
    assert [s.content for s in failing] == [*plain[:6], b""]
    assert "truncated" in failing[-1].path
    assert "status 3" in failing[-1].path
    with pytest.raises(ConfigError, match=r"/missing.tar cannot be read as a tar"):
        list(read_shard(f"{server}/missing.tar"))


def test_the_refusals_of_a_shard_list(tmp_path):
    write_shards(tmp_path / "s", shards=2)
    (tmp_path / "not.tar").write_bytes(b"x" * 2048)
    write_tar(tmp_path / "empty.tar", [("a.txt", b"text")])
    for root, message in (
        (f"{tmp_path}/none/*.tar", r"invalid `datasets.root=.*`: there is no such shard; set it to a path"),
        (f"{tmp_path}/s/{{000..004}}.tar", r"3 of the 5 shards of .* do not exist, the first is .*002.tar"),
        (f"{tmp_path}/not.tar", r"the shard .*not.tar cannot be read as a tar"),
        (f"{tmp_path}/empty.tar", r"no shard of .*empty.tar holds an image"),
        ("${NO_SUCH}/x.tar", r"cannot be expanded \(missing environment variable wds_WDS_NO_SUCH"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_shards(root)
    with pytest.raises(ConfigError, match=r"hold no image"):
        list(loader([ShardImages([str(tmp_path / "empty.tar")], None)], 8))
