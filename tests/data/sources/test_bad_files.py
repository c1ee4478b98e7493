"""A real run over a folder in which a fiftieth of the files is damaged in sixteen ways."""

import io
import json
import os
import struct
import zlib
from collections import Counter

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from hjepa_pl.__main__ import main
from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.data.sources.bad_files import BAD_FILES, BadFile, BadFiles, read_bad_files
from hjepa_pl.data.sources.decode import ImageFile
from hjepa_pl.types import ConfigError
from tests.cli.test_cli import TINY


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


def giant(content):
    """Let a JPEG's header promise 65,500 x 65,500 pixels, which would take 13 GB."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + (65500).to_bytes(2, "big") * 2 + content[at + 4 :]


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
    "magic.jpg": lambda i: b"\x00\x01" + picture("JPEG", i)[2:],
    "zeros.jpg": lambda i: bytes(2000 + i),
    "bomb.jpg": lambda i: giant(picture("JPEG", i)),
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
           "augmentation": {"jitter_prob": 0, "jitter": [0.0] * 4, "gray": 0.0, "solarize": 0.0}} | kwargs
    )  # fmt: skip
    module = Small()
    trainer = pl.Trainer(
        max_epochs=1, default_root_dir=folder, logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return module.layer.weight, read_bad_files(str(folder))


@pytest.mark.filterwarnings("ignore")
def test_a_hundred_damaged_files_of_many_kinds_among_five_thousand(tmp_path, monkeypatch):
    """`hjepa fit` twice, with a worker and without: status 0, every file named, the same weights to the bit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hjepa"])
    damaged = damaged_folder(tmp_path / "data", 4892, 100)  # 78 whole batches: every file is drawn
    config = yaml.safe_load(yaml.safe_dump(TINY))
    config["data"]["init_args"] |= {
        "datasets": [{"name": "folder", "root": str(tmp_path / "data")}],
        "batch_size": 64, "epoch_size": None, "probe": [], "max_bad_fraction": 0.05,
    }  # fmt: skip
    config["model"]["init_args"] |= {"levels": [{"cell": "image"}]}
    del config["model"]["init_args"]["predictor"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    runs = {}
    for workers in (1, 0):
        more = [f"--data.init_args.num_workers={workers}", f"--experiment_name=run{workers}"]
        assert main(["fit", "--config", "c.yaml", *more]) == 0
        run = tmp_path / f"results/run{workers}"
        weights = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        runs[workers] = (weights, read_bad_files(str(run)))
        assert json.loads((run / "summary.json").read_text())["bad_files"] == 100
    weights, named = runs[1]
    assert len(named) == 100
    assert sorted(path for path, _, _ in named) == sorted(damaged)
    assert {dataset for _, dataset, _ in named} == {"folder"}
    reasons = Counter(reason for _, _, reason in named)
    assert reasons["is empty"] == sum("empty" in p for p in damaged)
    assert reasons["not found"] == sum("gone" in p for p in damaged)
    assert reasons["not an image"] >= sum(any(k in p for k in ("text", "page", "magic", "zeros")) for p in damaged)
    assert sum("exceeds limit" in reason for reason in reasons.elements()) == sum("bomb" in p for p in damaged)
    assert sorted(runs[0][1]) == sorted(named)
    assert weights.keys() == runs[0][0].keys()
    assert not [name for name in weights if not torch.equal(weights[name], runs[0][0][name])]


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_a_file_without_its_end_is_broken_and_not_filled_with_grey(kind):
    """Cut anywhere, whoever decodes it, a file is refused, or has every pixel of the whole one.

    (A PNG without its last sum or a GIF without its last mark has all its pixels.)
    """
    progressive = {"progressive": True} if kind == "progressive" else {}
    content = picture("JPEG" if progressive else kind, 0, side=64, **progressive)
    whole, complete = ImageFile(content).pixels(3), 0
    cuts = {*range(1, 40), *range(len(content) - 40, len(content)), *range(0, len(content), len(content) // 40)}
    for cut in cuts:
        try:
            assert torch.equal(ImageFile(content[:cut]).pixels(3), whole)
            complete += 1
        except OSError:
            continue
    assert complete <= {"PNG": 22, "GIF": 2}.get(kind, 0)
    if kind == "JPEG":  # which libjpeg decodes; Pillow refuses it too
        with pytest.raises(OSError, match="truncated"), Image.open(io.BytesIO(content[:-200])) as image:
            image.load()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("allowed", "stops"), [(0.0, True), (0.1, True), (0.25, False)])
def test_the_allowed_share(tmp_path, allowed, stops):
    damaged_folder(tmp_path / "data", 200, 50)
    if stops:
        with pytest.raises(ConfigError, match=rf"more than max_bad_fraction={allowed:g}; fix or.*bad_files.txt\)"):
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
    assert ("small/00.png", "folder", "is empty") in names
    for split, of in (("train", "train"), ("val", "test")):
        assert (f"probe/{split}/a/07.png", f"probe mine ({of})", "not an image") in names
        assert (f"probe/{split}/b/07.png", f"probe mine ({of})", "not an image") in names
    assert len(names) == 5
    with pytest.raises(ConfigError, match=r"probe mine \(train\): 2 of 60 files cannot be decoded"):
        fit(tmp_path, tmp_path / "run", **data | {"max_bad_fraction": 0.03})


@pytest.mark.filterwarnings("ignore")
def test_several_ranks_and_a_resumed_run_name_each_file_once(tmp_path):
    files = [BadFile(f"/x/{i}\n.jpg", "a", "not\tfound") for i in range(5)]
    ranks = [BadFiles(0.1, lambda: str(tmp_path)) for _ in range(2)]
    ranks[0].add(files[:3], "is replaced")
    ranks[1].add(files[1:4], "is replaced")
    ranks[0].add(files[:5], "is replaced")
    BadFiles(0.1, lambda: str(tmp_path)).add(files, "is replaced")
    assert read_bad_files(str(tmp_path)) == files


def test_without_a_folder_they_are_kept_until_there_is_one(tmp_path):
    folder = [None]
    bad = BadFiles(0.1, lambda: folder[0])
    with pytest.warns(UserWarning, match=r"a: one.png cannot be decoded \(not found\) and is left out \(1 so far\)"):
        bad.add([BadFile("one.png", "a", "not found")], "is left out")
    folder[0] = str(tmp_path)
    with pytest.warns(UserWarning, match=r"two.png"):
        bad.add([BadFile("two.png", "a", "not found")], "is left out")
    assert (tmp_path / BAD_FILES).read_text() == "one.png\ta\tnot found\ntwo.png\ta\tnot found\n"


def test_only_the_first_few_are_warned_of():
    with pytest.warns(UserWarning, match="cannot be decoded") as caught:
        BadFiles().add([BadFile(f"{i}.png", "a", "not found") for i in range(30)], "is left out")
    assert len(caught) == 10
    assert "more of a are listed in bad_files.txt only" in str(caught[-1].message)


def test_a_row_that_a_kill_cut_off_is_left_out(tmp_path) -> None:
    (tmp_path / BAD_FILES).write_text("a.png\tfolder\tis empty\nb.pn")
    assert read_bad_files(str(tmp_path)) == [BadFile("a.png", "folder", "is empty")]
