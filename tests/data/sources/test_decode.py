"""Large photographs are decoded no larger than their views need, and let go one after the other."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.data.augment.crop_resize import clean_resize
from hjepa_pl.data.augment.multicrop import view_plan
from hjepa_pl.data.loading.batches import Draw
from hjepa_pl.data.loading.reader import FileReader, IndexedSource
from hjepa_pl.data.sources.decode import SHRINKS, ImageFile
from hjepa_pl.data.sources.images import FileImages
from hjepa_pl.types import Counters

PLAIN = AugmentationConfig(jitter=(0, 0, 0, 0), gray=0.0, blur=0.0, solarize=0.0, crop_scale=(0.3, 1.0))


def scene(height, width, seed=0):
    """A picture with edges and soft parts, as photographs have: soft colours, and light in several sizes."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for side, weight, colours in ((4, 30, 3), (16, 40, 1), (48, 20, 1)):
        rough = Image.fromarray(rng.integers(0, 256, (side, side, colours), dtype=np.uint8).repeat(3 // colours, 2))
        total += (np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC), dtype=float) - 128) * weight / 64
    return Image.fromarray((total + 128).clip(0, 255).astype(np.uint8))


def jpeg(image, mode="RGB", turn=None, **kwargs):
    exif = Image.Exif()
    if turn is not None:
        exif[0x0112] = turn
    out = io.BytesIO()
    image.convert(mode).save(out, "JPEG", quality=95, exif=exif, **kwargs)
    return out.getvalue()


@pytest.mark.parametrize("by", SHRINKS)
@pytest.mark.parametrize(
    ("keys", "channels"),
    [({}, 3), ({"progressive": True}, 3), ({"mode": "L"}, None), ({}, 1), ({"mode": "CMYK"}, 3), ({"turn": 6}, 3)],
    ids=str,
)
def test_a_smaller_jpeg_is_the_mean_of_the_whole_ones_squares(by, keys, channels) -> None:
    content = jpeg(scene(200, 336) if "turn" in keys else scene(195, 330), **keys)
    encoded = ImageFile(content)
    assert encoded.max_shrink == 8
    assert (encoded.height, encoded.width) == ((336, 200) if "turn" in keys else (195, 330))
    whole, small = ImageFile(content).pixels(channels), encoded.pixels(channels, by)
    assert whole.shape[1:] == (encoded.height, encoded.width)
    assert small.shape == (len(whole), *(-(-side // by) for side in whole.shape[1:]))
    means = torch.nn.functional.avg_pool2d(whole.float(), by)
    part = small[:, : means.shape[1], : means.shape[2]].float()
    assert (part - means).abs().mean() < 1.5
    assert (part - means.flip(-1)).abs().mean() > 5


def test_what_is_no_jpeg_is_as_large_as_it_is() -> None:
    out = io.BytesIO()
    scene(40, 50).save(out, "PNG")
    assert ImageFile(out.getvalue()).max_shrink == 1


def test_a_turned_one_is_decoded_smaller_where_its_sides_are_multiples() -> None:
    turned = (ImageFile(jpeg(scene(h, w), turn=3)) for h, w in ((24, 32), (20, 32), (18, 20), (19, 32)))
    assert [t.max_shrink for t in turned] == [8, 4, 2, 1]


@pytest.fixture
def shrinks(monkeypatch):
    """By what the images of a test are decoded smaller."""
    seen, plain = [], ImageFile.pixels

    def pixels(self, channels, shrink=1):
        seen.append(shrink)
        return plain(self, channels, shrink)

    monkeypatch.setattr(ImageFile, "pixels", pixels)
    return seen


def read(paths, size, augmentation=PLAIN):
    files = FileImages([str(p) for p in paths], torch.arange(len(paths)), ["x"])
    plan = view_plan(None, Augmenter(augmentation, size, (0.0,) * 3, (1.0,) * 3, seed=3), 2, None)
    n = len(paths)
    draw = Draw(torch.zeros(n, dtype=torch.int64), torch.arange(n), Counters(0, 0, torch.arange(n)))
    return FileReader([IndexedSource(files, 3)], ["x"], plan, 3).read(draw)


@pytest.mark.parametrize("turn", [None, 8])
def test_views_of_large_photographs_are_those_of_the_whole_ones(tmp_path, shrinks, turn) -> None:
    paths = [tmp_path / f"{i}.jpg" for i in range(40)]  # more than are read at once
    for i, path in enumerate(paths):
        path.write_bytes(jpeg(scene((301 if turn is None else 304) + 8 * i, 500, seed=i), turn=turn))
    found = read(paths, 32)
    assert found.label.tolist() == list(range(40))
    group = found.groups[0]
    assert set(shrinks) == {2, 4}
    for i, path in enumerate(paths):
        image = ImageFile(path.read_bytes()).pixels(3)
        sides = torch.tensor(image.shape[1:]).repeat(2)
        for view, box in zip(group.images, group.boxes, strict=True):
            edges = box[i] * sides
            flip = bool(edges[1] > edges[3])
            top, left, bottom, right = edges.round().int().tolist()
            assert (edges - edges.round()).abs().max() < 1e-3
            left, right = min(left, right), max(left, right)
            cut = image[None, :, top:bottom, left:right]
            expected = torch.nn.functional.interpolate(cut, size=(32, 32), mode="bilinear", antialias=True)[0]
            expected = expected.flip(-1) if flip else expected
            assert (view[i].int() - expected.int()).abs().float().mean() < 1.0
            assert (view[i].flip(-1).int() - expected.int()).abs().float().mean() > 4


def test_photographs_that_are_hardly_larger_than_the_view_are_decoded_whole(tmp_path, shrinks) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(scene(375, 500)))
    read([tmp_path / "a.jpg"], 224)
    whole = AugmentationConfig(preset="none")
    read([tmp_path / "a.jpg"], 32, whole)
    assert shrinks == [1, 1]


def test_one_that_breaks_off_while_it_is_decoded_smaller_is_replaced(tmp_path, shrinks) -> None:
    paths = [tmp_path / f"{i}.jpg" for i in range(6)]
    for i, path in enumerate(paths):
        content = jpeg(scene(400, 500, seed=i))
        path.write_bytes(content[: len(content) // 2] if i in (1, 4) else content)
    found = read(paths, 32)
    assert {b.path for b in found.broken} >= {str(paths[1]), str(paths[4])}
    stand_in = int(found.label[1])
    assert stand_in not in (1, 4)
    assert found.label[[0, 2, 3, 5]].tolist() == [0, 2, 3, 5]
    # The stand-in is what the row shows: alone, at the row's place in the run, it gives the same view.
    files = FileImages([str(p) for p in paths], torch.arange(6), ["x"])
    plan = view_plan(None, Augmenter(PLAIN, 32, (0.0,) * 3, (1.0,) * 3, seed=3), 2, None)
    draw = Draw(torch.zeros(1, dtype=torch.int64), torch.tensor([stand_in]), Counters(0, 0, torch.tensor([1])))
    alone = FileReader([IndexedSource(files, 3)], ["x"], plan, 3).read(draw).groups[0]
    for view, same in zip(found.groups[0].images, alone.images, strict=True):
        assert torch.equal(view[1], same[0])
    assert torch.equal(found.groups[0].boxes[:, 1], alone.boxes[:, 0])


def test_a_clean_image_of_bytes_is_that_of_floats() -> None:
    for shape in ((301, 500), (500, 301), (90, 40)):
        image = torch.from_numpy(np.array(scene(*shape))).permute(2, 0, 1)[None]
        for size in (64, (48, 96)):
            floats = clean_resize(image.float(), size)
            assert clean_resize(image, size).dtype == torch.uint8
            assert (clean_resize(image, size) - floats).abs().max() <= 1.6


@pytest.mark.parametrize("size", [32, 100])
def test_images_whose_headers_do_not_tell_how_they_are_turned(tmp_path, size) -> None:
    """TIFF and PNG with EXIF, a JPEG with XMP: all show the upright picture, and its boxes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = scene(200, 400)
    image.save(tmp_path / "0.tiff", exif=exif)
    image.save(tmp_path / "1.png", exif=exif)
    image.save(tmp_path / "2.webp", exif=exif, lossless=True)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    image.save(tmp_path / "3.jpg", quality=95, xmp=xmp)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    turned.save(tmp_path / "plain.png")
    paths = sorted(tmp_path.glob("?.*"))
    found, plain = read(paths, size).groups[0], read([tmp_path / "plain.png"] * 4, size).groups[0]
    assert torch.equal(found.boxes[:, :3], plain.boxes[:, :3])
    assert (found.boxes[:, 3] - plain.boxes[:, 3]).abs().max() <= 0.0101  # half a pixel of four, of 200
    for view, other in zip(found.images, plain.images, strict=True):
        assert torch.equal(view[:3], other[:3])
        assert (view[3].int() - other[3].int()).abs().float().mean() < 3  # a JPEG


@pytest.mark.parametrize("kind", [pytest.param("PNG", marks=pytest.mark.slow), "JPEG"])
def test_what_is_decoded_is_let_go(tmp_path, kind) -> None:
    """A batch of large pictures, one of them 5.5 MiB, grows the process by a few of them, not by all."""
    exif = Image.Exif()
    exif[0x0112] = 6  # Pillow decodes it
    scene(1200, 1600).save(tmp_path / f"x.{kind}", exif=exif if kind == "JPEG" else None)
    script = f"""
import resource, torch
torch.set_num_threads(1)
from tests.data.sources.test_decode import read
most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
read([{str(tmp_path / f"x.{kind}")!r}] * 2, 500)
before = most()
read([{str(tmp_path / f"x.{kind}")!r}] * 32, 500)
print(most() - before)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    views = 2 * 32 * 3 * 500 * 500 / 2**20
    assert float(run.stdout) < views + 40  # all of them: 160 MiB more
    once = ImageFile((tmp_path / f"x.{kind}").read_bytes())
    once.pixels(3)
    with pytest.raises(OSError, match="cannot identify"):
        once.pixels(3)


def test_a_picture_one_pixel_wide_has_views(tmp_path) -> None:
    scene(64, 1).save(tmp_path / "x.png")
    group = read([tmp_path / "x.png"] * 8, (8, 24)).groups[0]
    assert group.boxes.min() >= 0
    assert group.boxes.max() <= 1
