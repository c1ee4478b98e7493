"""The cache of features, labels of files that cannot be decoded, and the hash of images."""

import os
from pathlib import Path

import torch
from PIL import Image

from hjepa_pl.data.loading.image_spec import image_spec
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.data.sources.images import ArrayImages, FileImages
from hjepa_pl.tools.evaluate.extract import Pass, Split, extract, trim
from hjepa_pl.tools.evaluate.networks import Pixels
from hjepa_pl.tools.evaluate.sets import images_hash


def test_trimming_deletes_the_parts_used_least_recently_and_nothing_else(tmp_path) -> None:
    own = tmp_path / "mine" / "weights.safetensors"
    parts = [tmp_path / "features" / name / "000000000-last.mean.safetensors" for name in "abc"]
    for age, path in enumerate([own, *parts]):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(100))
        os.utime(path, (age, age))
    trim(tmp_path, limit=150)
    assert own.is_file()
    assert [path.is_file() for path in parts] == [False, False, True]
    assert not parts[0].parent.exists()


def test_a_damaged_file_gives_the_label_of_the_image_that_replaces_it(tmp_path) -> None:
    paths = []
    for i in range(4):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.effect_noise((16, 16), 60 + i).save(paths[-1])
    data = Path(paths[1]).read_bytes()
    Path(paths[1]).write_bytes(data[: len(data) // 2])
    images, bad = FileImages(paths, torch.tensor([0, 1, 2, 3]), list("abcd")), BadFiles(0.9)
    spec, how = image_spec(16, 1, None, None), Pass(torch.device("cpu"), torch.float32, 2, None)
    network = Pixels(spec)
    found = extract(network, Split("noise", images, torch.arange(4)), [network.kind(None)], how, bad, lambda _: None)
    assert found.labels.tolist() == [0, 2, 2, 3]
    assert torch.equal(found.features["pooled"][1], found.features["pooled"][2])
    assert bad.count == 1


def test_the_hash_of_images_is_of_their_pixels_and_labels() -> None:
    pixels, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4)
    first = images_hash(Split("a", ArrayImages(pixels, labels, list("abcd")), torch.arange(4)))
    assert first == images_hash(Split("b", ArrayImages(pixels, labels, list("wxyz")), torch.arange(4)))
    for images, rows in (
        (ArrayImages(pixels + 1, labels, []), torch.arange(4)),
        (ArrayImages(pixels, labels.flip(0), []), torch.arange(4)),
        (ArrayImages(pixels, labels, []), torch.arange(3)),
    ):
        assert images_hash(Split("a", images, rows)) != first
