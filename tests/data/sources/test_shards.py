"""Shards from a folder to a Trainer, and the command line that makes them."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from hjepa_pl.__main__ import main
from hjepa_pl.data import MultiDatasetDataModule, ProbeConfig
from hjepa_pl.data.sources.class_folders import find_tree
from hjepa_pl.data.sources.image_folder import scan_folder
from hjepa_pl.data.sources.shards import count_samples, open_shards
from hjepa_pl.data.sources.tar import read_shard
from hjepa_pl.tools.make_shards import make_shards
from hjepa_pl.types import ConfigError
from tests.cli.test_cli import TINY
from tests.data.loading.test_shard_stream import write_shards
from tests.data.test_datamodule import Watcher, trainer


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of 45 images in three classes, and one in none; odd names and endings."""
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(46):
        place = folder if i == 45 else folder / ("b.c", "a", "sub/d")[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        array = np.random.default_rng(i).integers(0, 256, (12 + i % 4, 16, 3), dtype=np.uint8)
        Image.fromarray(array).save(place / f"no. {i}.{('png', 'JPG', 'webp')[i % 3]}")
    return folder


def data(root, **kwargs):
    given = {"batch_size": 4, "epoch_size": 48, "views": 2, "num_workers": 2, "img_size": 16, "in_chans": 3, "seed": 5}
    sets = kwargs.pop("datasets", [{"name": "webdataset", "root": str(root), "shuffle_buffer": 10}])
    return MultiDatasetDataModule(sets, **(given | kwargs))


# -------------------------------------------------------------------------------------------------------- hjepa shards


def test_shards_hold_the_folders_bytes_and_labels(photographs, tmp_path, capsys) -> None:
    assert main(["shards", str(photographs), str(tmp_path / "out/train-%04d.tar"), "--per-shard", "10"]) == 0
    out = capsys.readouterr()
    root = f"{tmp_path}/out/train-{{0000..0004}}.tar"
    assert f'done: {{name: webdataset, root: "{root}"}}' in out.out
    assert "5 of 5 shards, 46 images" in out.err
    found = open_shards(root)
    assert len(found) == 46
    samples = [s for shard in found.shards for s in read_shard(shard)]
    files = scan_folder("folder", find_tree("folder", str(photographs), "train"))
    wanted = {Path(files.path(i)).read_bytes(): int(files.labels[i]) for i in range(46)}
    assert {s.content: s.label for s in samples} == wanted
    assert sorted(set(wanted.values())) == [-1, 0, 1, 2]
    for i in range(46):  # and so the same images
        sample = next(s for s in samples if s.content == Path(files.path(i)).read_bytes())
        assert torch.equal(sample.open().pixels(3), files.read(i, 3))
    assert [s.label for s in samples] != sorted(s.label for s in samples)
    info = json.loads((tmp_path / "out/train.json").read_text())
    assert info["classes"] == ["a", "b.c", "sub"]
    assert sum(s["samples"] for s in info["shards"].values()) == 46
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *(f"train-000{i}.tar" for i in range(5)),
        "train.json",
    ]


def test_shards_are_the_same_to_the_byte_but_for_the_seed(photographs, tmp_path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    for folder, seed in ((one, 0), (two, 0), (other, 1)):
        make_shards(str(photographs), f"{folder}/%d.tar", 20, seed=seed)
    for name in ("0.tar", "1.tar", "2.tar"):
        assert (one / name).read_bytes() == (two / name).read_bytes() != (other / name).read_bytes()


def test_the_list_beside_the_shards_is_believed_while_their_length_is_the_same(photographs, tmp_path) -> None:
    make_shards(str(photographs), f"{tmp_path}/x-%d.tar", 20)
    paths = sorted(map(str, tmp_path.glob("*.tar")))
    info = json.loads((tmp_path / "x.json").read_text())
    info["shards"]["x-0.tar"]["samples"] = 1000
    (tmp_path / "x.json").write_text(json.dumps(info))
    assert count_samples(paths) == 1026
    with tarfile.open(paths[0], "a") as tar:
        tar.add(next(photographs.glob("*.png")), "more.png")
    assert count_samples(paths) == 47


def test_what_hjepa_shards_refuses(photographs, tmp_path, capsys) -> None:
    pattern = f"{tmp_path}/%d.tar"
    assert main(["shards", str(photographs), pattern]) == 0
    before = (tmp_path / "0.tar").read_bytes()
    capsys.readouterr()
    empty = tmp_path / "empty"
    empty.mkdir()
    for args, named in (
        ([str(photographs), pattern], "0.tar exists"),
        ([str(photographs), f"{tmp_path}/x.tar"], "has no number"),
        ([str(photographs), f"{tmp_path}/%d.tgz"], "does not end in .tar"),
        ([str(photographs), f"{tmp_path}/y%d.tar", "--per-shard=0"], "--per-shard 0 is invalid"),
        ([str(empty), f"{tmp_path}/y%d.tar"], "holds no image; set root to a folder with images"),
        ([str(tmp_path / "none"), f"{tmp_path}/y%d.tar"], "is not a folder"),
        ([str(photographs), f"{tmp_path}/y%d.tar", "--split=val"], "there is no folder"),
    ):
        assert main(["shards", *args]) == 2
        error = capsys.readouterr().err
        assert error.startswith("hjepa: error: ")
        assert named in error
        assert len(error.splitlines()) == 1
    assert (tmp_path / "0.tar").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_an_image_that_cannot_be_read_leaves_no_half_shard(photographs, tmp_path, capsys) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert main(["shards", str(folder), f"{tmp_path}/out/%d.tar"]) == 2
    assert "gone.png cannot be read (No such file or directory)" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_help_says_what_is_made() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hjepa_pl", "shards", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    for word in ("byte by byte", "--per-shard", "webdataset", "train-%06d.tar"):
        assert word in done.stdout


# -------------------------------------------------------------------------------------------------------- the Trainer


@pytest.mark.filterwarnings("ignore:.*cannot be decoded")
def test_resumed_between_epochs_and_within_one_it_has_the_same_weights(tmp_path) -> None:
    write_shards(tmp_path / "s", broken=(11,))
    sets = [{"name": "webdataset", "root": f"{tmp_path}/s", "weight": 2, "shuffle_buffer": 9}, {"name": "fake"}]

    def run(module, path=None, **limits):
        runner = trainer(tmp_path, enable_checkpointing="callbacks" in limits, **({"max_epochs": 2} | limits))
        runner.fit(module, data("", datasets=sets), ckpt_path=path)
        return runner

    whole = Watcher()
    keep = pl.callbacks.ModelCheckpoint(tmp_path, "17", every_n_train_steps=17, save_on_train_epoch_end=False)
    run(whole, callbacks=[keep])
    run(Watcher(), max_epochs=1).save_checkpoint(tmp_path / "12.ckpt")
    assert [b.counters.step for b in whole.batches] == list(range(24))
    assert torch.bincount(torch.cat([b.source for b in whole.batches[:12]])).tolist() == [32, 16]
    epochs = [torch.cat([b.label for b in whole.batches[at : at + 12]]).tolist() for at in (0, 12)]
    assert epochs[0] != epochs[1]
    for done in (12, 17):
        second = Watcher()
        run(second, tmp_path / f"{done}.ckpt")
        assert [b.counters.step for b in second.batches] == list(range(done, 24))
        for a, b in zip(whole.batches[done:], second.batches, strict=True):
            assert torch.equal(a.views[1], b.views[1])
        assert torch.equal(whole.layer.weight, second.layer.weight)


class Saver(Watcher):
    def on_train_end(self):
        torch.save([b.label for b in self.batches], Path(self.trainer.default_root_dir, f"{self.global_rank}.pt"))


def test_two_processes_read_shards_of_their_own(tmp_path) -> None:
    write_shards(tmp_path / "s", shards=4, per_shard=8)
    # Forked: started anew, two processes would spend most of a minute on their imports.
    runner = trainer(tmp_path, devices=2, strategy="ddp_fork", use_distributed_sampler=False)
    runner.fit(Saver(), data(tmp_path / "s", epoch_size=None))
    seen = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert len(seen[0]) == len(seen[1]) == 4
    assert sorted(torch.cat([*seen[0], *seen[1]]).tolist()) == list(range(32))


# ----------------------------------------------------------------------------------------------------------- settings


def test_workers_are_as_many_as_there_are_shards_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    write_shards(tmp_path, shards=3)
    found = data(tmp_path, num_workers=None)
    found.setup("fit")
    assert found.train_dataloader().num_workers == 3


def test_the_order_is_part_of_what_a_resumed_run_must_have(tmp_path) -> None:
    assert data(tmp_path).settings()["num_workers"] == 2
    assert "num_workers" not in data("", datasets=[{"name": "fake"}]).settings()


def test_an_epoch_too_short_for_the_ends_of_shards_draws_a_warning(tmp_path) -> None:
    write_shards(tmp_path, shards=2, per_shard=40)
    found = data(tmp_path, epoch_size=48)
    found.setup("fit")
    with pytest.warns(
        UserWarning, match=r"each worker draws 24 samples .* the ends of shards of 40 samples are never read"
    ):
        found.train_dataloader()


def test_only_what_lies_in_a_temporary_folder_draws_the_warning_of_it(tmp_path, monkeypatch, recwarn) -> None:
    monkeypatch.chdir(tmp_path)
    data("pipe:cat x.tar").prepare_data()
    assert not [w for w in recwarn if "temporary files" in str(w.message)]
    with pytest.warns(UserWarning, match="the data of webdataset is in /tmp/x.tar, a folder for temporary files"):
        data("/tmp/x.tar").prepare_data()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"name": "webdataset"}, r"invalid `datasets.root=null`: must be the tar shards, as .* \(dataset webdataset\)"),
        (
            {"name": "webdataset", "root": "x", "split": "val"},
            r"`datasets.split=val`: has no effect on shards; .* \(dataset webdataset\)",
        ),
        ({"name": "webdataset", "root": "x", "fraction": 0.5}, r"`datasets.fraction=0.5`: has no effect on shards"),
        ({"name": "webdataset", "root": "x", "samples": 0}, r"`datasets.samples=0`: must be a whole number >= 1"),
        (
            {"name": "fake", "shuffle_buffer": 10},
            r"`datasets.shuffle_buffer=10`: is for webdataset only; remove it \(dataset fake\)",
        ),
    ],
)
def test_refused_at_once(dataset, message) -> None:
    with pytest.raises(ConfigError, match=message):
        data("", datasets=[dataset])


def test_a_probe_set_and_a_prediction_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"`probe\.name=webdataset`: probes need images by index; unpack"):
        ProbeConfig(name="webdataset", root="x")
    write_shards(tmp_path, shards=2)
    found = data(tmp_path)
    found.setup("predict")
    with pytest.raises(ConfigError, match="prediction needs images by index; unpack the shards"):
        found.predict_dataloader()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"root": "none/*.tar"}, "invalid `datasets.root=none/*.tar`: there is no such shard"),
        ({"root": "s/{000..002}.tar"}, "1 of the 3 shards of s/{000..002}.tar do not exist, the first is s/002.tar"),
        ({"root": "not.tar"}, "the shard not.tar cannot be read as a tar"),
        ({"root": "pipe:cat not.tar", "samples": 9}, "the shard pipe:cat not.tar cannot be read as a tar"),
        (
            {"root": "pipe:cat s/{000..001}.tar"},
            "invalid `datasets.samples=null`: must be the number of images in all shards without epoch_size",
        ),
        ({"root": "s", "num_workers": 4}, "a dataset has 2 shard(s), fewer than num_workers=4 x 1 process(es)"),
    ],
)
def test_refused_by_the_command_line_in_one_sentence(tmp_path, monkeypatch, capsys, given, named) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hjepa"])
    write_shards(Path("s"), shards=2, per_shard=32)
    Path("not.tar").write_bytes(b"x" * 4096)
    config = yaml.safe_load(yaml.safe_dump(TINY))
    settings = config["data"]["init_args"]
    settings["datasets"] = [{"name": "webdataset"} | {k: v for k, v in given.items() if k != "num_workers"}]
    settings |= {"epoch_size": None, "probe": [], "batch_size": 8, "num_workers": given.get("num_workers")}
    if "samples" in given:
        settings["epoch_size"] = 16
    Path("c.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "c.yaml"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert named in error.splitlines()[-1]
    assert error.splitlines()[-1].startswith("hjepa: error: ")


def test_samples_given_stand_for_a_size_that_cannot_be_counted(tmp_path) -> None:
    write_shards(tmp_path, shards=2)
    piped = {"name": "webdataset", "root": f"pipe:cat {tmp_path}/{{000..001}}.tar"}
    found = data("", datasets=[{**piped, "samples": 12}], epoch_size=None)
    found.setup("fit")
    assert len(found.train_dataloader()) == 3
    unknown = data("", datasets=[piped, {"name": "fake"}], sampling="concat")
    with pytest.raises(ConfigError, match=r"invalid `datasets\.samples=null`: must be .* with sampling=concat"):
        unknown.setup("fit")
    known = data("", datasets=[piped, {"name": "fake"}])
    known.setup("fit")
    assert known.share_drawn() == {"webdataset": 0.5, "fake": 0.5}
    runner, module = trainer(tmp_path), Watcher()
    assert isinstance(runner, pl.Trainer)
    runner.fit(module, known)
    assert len(module.batches) == 12
