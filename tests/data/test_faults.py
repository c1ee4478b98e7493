"""A real run over a folder in which a fiftieth of the files is damaged in twelve ways."""

import io
import os
import struct
import zlib
from collections import Counter

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.data.faults import BAD_FILES, BadFile, BadFiles
from hjepa_pl.types import ConfigError


def picture(kind, seed, side=24, **kwargs):
    rng = np.random.default_rng(seed)
    deep = rng.integers(0, 65536, (side, side), dtype=np.uint16)
    image = Image.fromarray(deep if kind == "deep" else rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if kind == "deep" else kind, **kwargs)
    return buffer.getvalue()


def broken_data(content):
    """Break the bytes of a PNG's pixels, and give the chunk the right sum."""
    at = content.index(b"IDAT")
    length = struct.unpack(">I", content[at - 4 : at])[0]
    data = b"IDAT" + b"\x00" * length
    return content[:at] + data + struct.pack(">I", zlib.crc32(data)) + content[at + 4 + length + 4 :]


def wrong_sum(content):
    """Break the sum of a PNG's header."""
    at = content.index(b"IHDR")
    return content[: at + 17] + b"\x00\x00\x00\x00" + content[at + 21 :]


DAMAGE = {
    "half.jpg": lambda i: (c := picture("JPEG", i))[: len(c) // 2],
    "header.jpg": lambda i: picture("JPEG", i)[:40],
    "tail.jpg": lambda i: (c := picture("JPEG", i))[: len(c) - 40 - i],
    "empty.jpg": lambda i: b"",
    "text.jpg": lambda i: b"once upon a time\n" * (i + 1),
    "page.jpg": lambda i: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "sum.png": lambda i: wrong_sum(picture("PNG", i)),
    "data.png": lambda i: broken_data(picture("PNG", i)),
    "header.gif": lambda i: picture("GIF", i)[:13],
    "half.webp": lambda i: (c := picture("WEBP", i))[: len(c) // 2],
    "offset.tif": lambda i: picture("TIFF", i)[:4] + b"\xff\xff\xff\x7f" + picture("TIFF", i)[8:20],
    "deep.png": lambda i: (c := picture("deep", i))[: len(c) // 2],
    "gone.jpg": None,
}


def damaged_folder(folder, good, bad):
    """Write a folder of images of several sizes and the damaged ones among them, and return the paths of those."""
    contents = [picture("JPEG" if i % 2 else "PNG", i, side=14 + i % 3) for i in range(60)]
    for c in ("a", "b"):
        (folder / c).mkdir(parents=True)
    for i in range(good):
        suffix = "jpg" if i % 2 else "png"
        (folder / "ab"[i % 2] / f"{i:05d}.{suffix}").write_bytes(contents[i % len(contents)])
    (folder / "a" / "a_folder.jpg").mkdir()
    damaged = []
    for i in range(bad):
        name, make = list(DAMAGE.items())[i % len(DAMAGE)]
        path = folder / "ab"[i % 2] / f"{i:05d}_{name}"
        if make is None:
            path.symlink_to(folder / "nowhere.jpg")
        else:
            path.write_bytes(make(i))
        damaged.append(str(path))
    return damaged


class Small(pl.LightningModule):
    img_size, in_chans = 8, 3

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3 * 8 * 8, 4)

    def training_step(self, batch, batch_idx):
        return self.layer(batch.views[0].flatten(1)).square().mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-2)


def fit(root, folder, **kwargs):
    """Train for an epoch; return the weights and what bad_files.txt says."""
    data = MultiDatasetDataModule(
        **{"datasets": [{"name": "folder", "root": str(root)}], "batch_size": 64, "num_workers": 1,
           "augmentation": {"jitter_prob": 0, "jitter": [0.0] * 4, "gray": 0.0, "solarize": 0.0},
           "index_cache": None} | kwargs
    )  # fmt: skip
    module = Small()
    trainer = pl.Trainer(
        max_epochs=1, default_root_dir=folder, logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    path = folder / BAD_FILES
    return module.layer.weight, [line.split("\t") for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.filterwarnings("ignore")
def test_a_hundred_damaged_files_of_many_kinds_among_five_thousand(tmp_path):
    damaged = damaged_folder(tmp_path / "data", 4892, 100)  # 78 whole batches: every file is drawn
    weights, named = fit(tmp_path / "data", tmp_path / "one")
    assert len(named) == 100
    assert sorted(path for path, _, _ in named) == sorted(damaged)
    assert {dataset for _, dataset, _ in named} == {"folder"}
    reasons = Counter(reason for _, _, reason in named)
    assert reasons["it is empty"] == sum("empty" in p for p in damaged)
    assert reasons["it is gone"] == sum("gone" in p for p in damaged)
    assert reasons["it is no image"] >= sum("text" in p or "page" in p for p in damaged)
    again, named_again = fit(tmp_path / "data", tmp_path / "two", num_workers=0)
    assert torch.equal(weights, again)
    assert sorted(named_again) == sorted(named)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("allowed", "stops"), [(0.0, True), (0.1, True), (0.25, False)])
def test_the_allowed_share(tmp_path, allowed, stops):
    damaged_folder(tmp_path / "data", 200, 50)
    if stops:
        with pytest.raises(ConfigError, match=rf"more than max_bad_fraction={allowed:g}: mend or.*bad_files.txt\)"):
            fit(tmp_path / "data", tmp_path, num_workers=0, max_bad_fraction=allowed)
        assert (tmp_path / BAD_FILES).exists()
    else:
        assert 0 < len(fit(tmp_path / "data", tmp_path, num_workers=0, max_bad_fraction=allowed)[1]) <= 50


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), True])
def test_what_is_no_share_is_refused(value):
    with pytest.raises(ConfigError, match="max_bad_fraction="):
        MultiDatasetDataModule([{"name": "digits"}], max_bad_fraction=value)


@pytest.mark.filterwarnings("ignore")
def test_files_without_replacement_stop_the_run_and_are_named(tmp_path):
    damaged_folder(tmp_path / "data", 4, 96)
    with pytest.raises(ConfigError, match="20 files in a row cannot be decoded"):
        fit(tmp_path / "data", tmp_path, max_bad_fraction=1.0)
    assert len((tmp_path / BAD_FILES).read_text().splitlines()) > 20


@pytest.mark.filterwarnings("ignore")
def test_files_of_small_sets_and_of_probes_are_named_too(tmp_path):
    for i in range(100):  # of one size: read into memory
        (tmp_path / "small").mkdir(exist_ok=True)
        (tmp_path / f"small/{i:02d}.png").write_bytes(picture("PNG", i) if i else b"")
    for split in ("train", "val"):
        for c in "ab":
            (tmp_path / "probe" / split / c).mkdir(parents=True)
            for i in range(30):
                content = picture("PNG", i, side=20 + i % 2) if i != 7 else b"junk"
                (tmp_path / "probe" / split / c / f"{i:02d}.png").write_bytes(content)
    data = {"datasets": [{"name": "folder", "root": str(tmp_path / "small")}], "batch_size": 16}
    data["probe"] = [{"name": "folder", "root": str(tmp_path / "probe"), "title": "mine"}]
    named = fit(tmp_path, tmp_path / "run", **data)[1]
    names = [(os.path.relpath(path, tmp_path), *rest) for path, *rest in named]
    assert ("small/00.png", "folder", "it is empty") in names
    for split, of in (("train", "train"), ("val", "test")):
        assert (f"probe/{split}/a/07.png", f"probe mine ({of})", "it is no image") in names
        assert (f"probe/{split}/b/07.png", f"probe mine ({of})", "it is no image") in names
    assert len(names) == 5
    with pytest.raises(ConfigError, match=r"`probe mine \(train\)`: 2 of 60 files cannot be decoded"):
        fit(tmp_path, tmp_path / "run", **data | {"max_bad_fraction": 0.03})


@pytest.mark.filterwarnings("ignore")
def test_several_ranks_and_a_resumed_run_name_each_file_once(tmp_path):
    files = [BadFile("a", f"/x/{i}\n.jpg", "it is\tgone") for i in range(5)]
    ranks = [BadFiles(0.1, lambda: str(tmp_path)) for _ in range(2)]
    ranks[0].add(files[:3], "is replaced")
    ranks[1].add(files[1:4], "is replaced")
    ranks[0].add(files[:5], "is replaced")
    BadFiles(0.1, lambda: str(tmp_path)).add(files, "is replaced")
    lines = (tmp_path / BAD_FILES).read_text().splitlines()
    assert lines == [f"/x/{i}\\n.jpg\ta\tit is\\tgone" for i in range(5)]


def test_without_a_folder_they_are_kept_until_there_is_one(tmp_path):
    folder = [None]
    bad = BadFiles(0.1, lambda: folder[0])
    with pytest.warns(UserWarning, match=r"a: one.png cannot be decoded \(it is gone\) and is left out \(1 so far\)"):
        bad.add([BadFile("a", "one.png", "it is gone")], "is left out")
    folder[0] = str(tmp_path)
    with pytest.warns(UserWarning, match=r"two.png"):
        bad.add([BadFile("a", "two.png", "it is gone")], "is left out")
    assert (tmp_path / BAD_FILES).read_text() == "one.png\ta\tit is gone\ntwo.png\ta\tit is gone\n"


def test_only_the_first_few_are_warned_of():
    with pytest.warns(UserWarning, match="cannot be decoded") as caught:
        BadFiles().add([BadFile("a", f"{i}.png", "it is gone") for i in range(30)], "is left out")
    assert len(caught) == 10
    assert "further ones are named in bad_files.txt only" in str(caught[-1].message)
