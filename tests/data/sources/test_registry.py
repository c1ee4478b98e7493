import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as tv

from hjepa_pl.data.augment.color import adapt_channels
from hjepa_pl.data.sources.class_folders import imagenet100_classes
from hjepa_pl.data.sources.decode import ImageFile
from hjepa_pl.data.sources.images import ArrayImages, FileImages
from hjepa_pl.data.sources.registry import load_dataset
from hjepa_pl.functional.stratify import stratified
from hjepa_pl.types import ConfigError


def decode(path, channels):
    return ImageFile(Path(path).read_bytes()).pixels(channels)


def save(path, size=(8, 8), value=0, mode="RGB", **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(path, **kwargs)


@pytest.mark.parametrize(("name", "side"), [("digits", 8), ("digits_canvas", 16)])
def test_digits(name, side):
    train, test = load_dataset(name), load_dataset(name, split="test")
    assert train.images.shape == (1438, 1, side, side)
    assert len(test) == 359
    assert train.images.dtype == torch.uint8
    share = torch.bincount(test.labels) / (torch.bincount(train.labels) + torch.bincount(test.labels))
    assert (share - 0.2).abs().max() < 0.01
    assert torch.equal(load_dataset(name).images, train.images)
    assert train.images.float().mean() > 5


def test_digits_canvas_is_turned_and_shifted_but_whole():
    plain, canvas = load_dataset("digits").images.float(), load_dataset("digits_canvas").images.float()
    ratio = canvas.sum((1, 2, 3)) / plain.sum((1, 2, 3))
    assert ratio.mean() > 0.95
    mass = canvas.sum((1, 2))
    centre = (mass * torch.arange(16)).sum(1) / mass.sum(1)
    assert centre.std() > 1


def test_fake_is_learnable_and_fixed():
    fake = load_dataset("fake")
    assert fake.images.shape == (256, 3, 32, 32)
    assert torch.equal(fake.images, load_dataset("fake").images)
    assert not torch.equal(fake.images, load_dataset("fake", split="test").images)
    assert torch.bincount(fake.labels).tolist() == [64] * 4


def unverified(monkeypatch, cls, *lists):
    """Let torchvision take files with other checksums than the official ones."""
    for name in lists:
        monkeypatch.setattr(cls, name, [[row[0], None] for row in getattr(cls, name)])
    if hasattr(cls, "meta"):
        monkeypatch.setattr(cls, "meta", cls.meta | {"md5": None})


@pytest.mark.parametrize(
    ("name", "cls", "key"), [("cifar10", tv.CIFAR10, "labels"), ("cifar100", tv.CIFAR100, "fine_labels")]
)
def test_cifar(tmp_path, monkeypatch, name, cls, key):
    unverified(monkeypatch, cls, "train_list", "test_list")
    base = tmp_path / cls.base_folder
    base.mkdir()
    data = {}
    for i, row in enumerate(cls.train_list + cls.test_list):
        data[row[0]] = np.random.default_rng(i).integers(0, 256, (4, 3072), dtype=np.uint8)
        (base / row[0]).write_bytes(pickle.dumps({"data": data[row[0]], key: [i, 1, 2, 3]}))
    (base / cls.meta["filename"]).write_bytes(pickle.dumps({cls.meta["key"]: [str(i) for i in range(10)]}))
    train, test = load_dataset(name, str(tmp_path)), load_dataset(name, str(tmp_path), "test")
    assert len(train) == 4 * len(cls.train_list)
    assert train.labels[:4].tolist() == [0, 1, 2, 3]
    assert torch.equal(train.images[1], torch.from_numpy(data[cls.train_list[0][0]][1].reshape(3, 32, 32)))
    assert len(test) == 4


def test_stl10(tmp_path, monkeypatch):
    unverified(monkeypatch, tv.STL10, "train_list", "test_list")
    base = tmp_path / "stl10_binary"
    base.mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)
    # The files hold each plane column by column.
    for part, n in (("train", 2), ("test", 2), ("unlabeled", 1)):
        picture[:n].transpose(0, 1, 3, 2).tofile(base / f"{part}_X.bin")
        if part != "unlabeled":
            np.array([1, 10], dtype=np.uint8).tofile(base / f"{part}_y.bin")
    (base / "class_names.txt").write_text("\n".join("abcdefghij"))
    train = load_dataset("stl10", str(tmp_path))
    assert torch.equal(train.images, torch.from_numpy(picture))
    assert train.labels.tolist() == [0, 9]
    assert load_dataset("stl10", str(tmp_path), "test").labels.tolist() == [0, 9]
    assert load_dataset("stl10", str(tmp_path), "unlabeled").labels.tolist() == [-1]
    assert load_dataset("stl10", str(tmp_path), "train+unlabeled").labels.tolist() == [0, 9, -1]


def test_absent_or_damaged_official_files_name_the_command(tmp_path):
    for name in ("cifar10", "cifar100", "stl10"):
        with pytest.raises(ConfigError, match=r"get them with `python -c .*download=True"):
            load_dataset(name, str(tmp_path))
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py/data_batch_1").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="does not hold the complete official files of cifar10"):
        load_dataset("cifar10", str(tmp_path))


def test_folder_with_splits_nested_and_links(tmp_path):
    save(tmp_path / "a/train/cat/x/1.PNG", value=1)
    save(tmp_path / "a/train/dog/2.JpEg", value=2)
    save(tmp_path / "elsewhere/3.png", value=3)
    (tmp_path / "a/train/emu").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a/train/dog/loop").symlink_to(tmp_path / "a/train/dog")
    (tmp_path / "a/train/notes.txt").write_text("no image")
    save(tmp_path / "a/train/.hidden/4.png")
    save(tmp_path / "a/val/cat/1.png", value=5)
    train = load_dataset("folder", str(tmp_path / "a"))
    assert isinstance(train, ArrayImages)
    assert train.classes == ["cat", "dog", "emu"]
    assert train.labels.tolist() == [0, 1, 2]
    assert torch.equal(train.images[0], decode(str(tmp_path / "a/train/cat/x/1.PNG"), 3))
    assert len(load_dataset("folder", str(tmp_path / "a"), "test")) == 1


def test_folder_without_splits_and_flat(tmp_path):
    save(tmp_path / "c/one/1.png")
    save(tmp_path / "c/two/1.png", size=(9, 8))
    plain = load_dataset("folder", str(tmp_path / "c"))
    assert isinstance(plain, FileImages)
    assert plain.labels.tolist() == [0, 1]
    assert plain.read(1, 3).shape == (3, 8, 9)
    for i in range(3):
        save(tmp_path / f"f/{i}.bmp", mode="L", value=i)
    flat = load_dataset("folder", str(tmp_path / "f"))
    assert flat.labels.tolist() == [-1] * 3
    assert flat.images.shape == (3, 1, 8, 8)


def test_gray_and_colour_mix_in_memory(tmp_path):
    save(tmp_path / "a.png", mode="L")
    save(tmp_path / "b.png")
    assert load_dataset("folder", str(tmp_path)).images.shape == (2, 3, 8, 8)


def test_broken_files_are_left_out_up_to_a_tenth(tmp_path):
    for i in range(20):
        save(tmp_path / f"{i:02}.png", value=i)
    (tmp_path / "03.png").write_bytes(b"not a picture")
    with pytest.warns(UserWarning, match=r"03.png cannot be decoded \(not an image\) and is left out"):
        assert len(load_dataset("folder", str(tmp_path))) == 19
    for i in (4, 5):
        (tmp_path / f"{i:02}.png").write_bytes(b"")
    with pytest.raises(
        ConfigError,
        match=r"3 of 20 files cannot be decoded, more than max_bad_fraction=0.1; fix or remove .*03.png, .*05.png",
    ):
        load_dataset("folder", str(tmp_path))


def test_imagenet100_takes_its_classes_only(tmp_path):
    classes = imagenet100_classes()
    assert len(classes) == 100
    assert classes == sorted(classes)
    for i, wnid in enumerate(classes):
        save(tmp_path / "big/train" / wnid / "x.JPEG", value=i)
    save(tmp_path / "big/train/n00000001/x.JPEG")
    for root in ("big", "big/train"):
        images = load_dataset("imagenet100", str(tmp_path / root))
        assert images.labels.tolist() == list(range(100))
        assert dict(zip(classes, images.classes, strict=True)).items() >= {
            "n01558993": "robin", "n02085620": "Chihuahua", "n04111531": "rotisserie", "n07753275": "pineapple",
        }.items()  # fmt: skip
        assert len(set(images.classes)) == 100
    assert len(load_dataset("imagenet", str(tmp_path / "big"))) == 101
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="lacks 100 of the 100 class folders of imagenet100"):
        load_dataset("imagenet100", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("folder", "train", "holds no image; set root to a folder with images"),
        ("folder", "test", "there is no folder .*test for the split test; make it"),
        ("folder", "dev", "invalid `datasets.split=dev`: must be train, val or test"),
        ("imagenet", "train", "there is no folder .*train for the split train; make it"),
    ],
)
def test_empty_folder(tmp_path, name, split, message):
    with pytest.raises(ConfigError, match=message):
        load_dataset(name, str(tmp_path), split)


def test_missing_folder_and_split():
    with pytest.raises(ConfigError, match=r"/nowhere is not a folder; set root to the folder"):
        load_dataset("folder", "/nowhere")
    with pytest.raises(ConfigError, match=r"invalid `datasets.split=val`: must be train or test \(dataset digits\)"):
        load_dataset("digits", split="val")


def test_decode_exif_and_modes(tmp_path):
    array = np.zeros((8, 16, 3), dtype=np.uint8)
    array[:, :8, 0] = 255
    picture = Image.fromarray(array)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = decode(str(tmp_path / "turned.jpg"), 3)
    assert turned.shape == (3, 16, 8)
    assert turned[0, :6].float().mean() > 240
    assert turned[0, 10:].float().mean() < 15
    exif[0x0112] = 1
    picture.save(tmp_path / "upright.jpg", exif=exif, quality=95)
    assert decode(str(tmp_path / "upright.jpg"), 3).shape == (3, 8, 16)
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    red = decode(str(tmp_path / "cmyk.jpg"), 3)[:, 4, 2].int()
    assert (red - torch.tensor([255, 0, 0])).abs().max() < 20
    picture.convert("P").save(tmp_path / "palette.png")
    assert decode(str(tmp_path / "palette.png"), 3)[:, 4, 2].tolist() == [255, 0, 0]
    picture.convert("L").save(tmp_path / "gray.jpg", quality=95)
    assert decode(str(tmp_path / "gray.jpg"), None).shape == (1, 8, 16)
    assert decode(str(tmp_path / "gray.jpg"), 3).shape == (3, 8, 16)
    assert decode(str(tmp_path / "palette.png"), 1).shape == (1, 8, 16)


def test_decode_depth_and_alpha(tmp_path):
    deep = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    expected = torch.from_numpy(np.rint(deep / 257).astype(np.uint8))
    assert torch.equal(decode(str(tmp_path / "deep.png"), None)[0], expected)
    assert torch.equal(decode(str(tmp_path / "deep.png"), 3)[2], expected)
    clear = np.zeros((8, 8, 4), dtype=np.uint8)
    clear[:4, :, 3] = 255
    Image.fromarray(clear).save(tmp_path / "alpha.png")
    shown = decode(str(tmp_path / "alpha.png"), 3)
    assert shown[:, :4].max() == 0
    assert shown[:, 4:].min() == 255
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "float.tiff")
    assert decode(str(tmp_path / "float.tiff"), 1).unique().tolist() == [128]


def test_fast_path_equals_pillow_and_truncated_is_broken(tmp_path):
    save(tmp_path / "x.jpg", size=(60, 40))
    with Image.open(tmp_path / "x.jpg") as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert (decode(str(tmp_path / "x.jpg"), 3).int() - expected.int()).abs().max() <= 2
    content = (tmp_path / "x.jpg").read_bytes()
    for cut in (len(content) // 2, 30, 0):
        (tmp_path / "x.jpg").write_bytes(content[:cut])
        with pytest.raises(OSError):
            decode(str(tmp_path / "x.jpg"), 3)


def test_stratified():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    chosen = stratified(labels, 20, seed=1)
    assert torch.bincount(labels[chosen]).tolist() == [12, 6, 2]
    assert torch.equal(chosen, stratified(labels, 20, seed=1))
    assert not torch.equal(chosen, stratified(labels, 20, seed=2))
    assert torch.equal(stratified(labels, 500, seed=1), torch.arange(100))


def test_adapt_channels():
    gray = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    colour = adapt_channels(gray, 3)
    assert torch.equal(colour[:, 2], gray[:, 0])
    assert torch.equal(adapt_channels(colour.contiguous(), 1), gray)
    with pytest.raises(ConfigError, match=r"invalid `data\.in_chans=2`: images have 3 channels; use 1 or 3"):
        adapt_channels(colour, 2)
