"""`load_encoder`: the encoder and the images of a run, without Lightning, or one sentence."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import hjepa_pl
from hjepa_pl.backbones import CleanTransform
from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.data.loading.eval_loader import CleanRows, RawClean, clean_batch
from hjepa_pl.data.loading.image_spec import ImageSpec
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.data.sources.class_folders import find_tree
from hjepa_pl.data.sources.image_folder import scan_folder
from hjepa_pl.types import ConfigError

GRAY = {"in_chans": 1}


def test_features_are_those_of_the_module(write) -> None:
    """By default of the target encoder; of the online one on request; from the file, the folder, the run."""
    module, path = write(encoder={"reg_tokens": 2, "position": "rope"})
    images = torch.randn(3, 3, 16, 16)
    backbone = hjepa_pl.load_encoder(path)
    assert (backbone.branch, backbone.training) == ("target", False)
    assert_close(backbone(images), module.encode(images), rtol=0, atol=0)
    online = hjepa_pl.load_encoder(path.parents[1], branch="online")
    assert_close(online(images), module.context_encoder(images)["last"].mean(1), rtol=0, atol=0)
    assert (online(images) - backbone(images)).abs().max() > 1e-3
    tokens = backbone.forward_features(images)
    assert tokens.shape == (3, 2 + 16, 32)
    assert_close(tokens[:, 2:].mean(1), backbone(images), rtol=0, atol=1e-5)
    assert_close(hjepa_pl.load_encoder(path.parent)(images), backbone(images))


def test_what_it_knows(write) -> None:
    _, path = write(encoder={**GRAY, "img_size": [16, 24]}, data={"mean": [0.3], "std": [0.4]})
    (path.parents[1] / "summary.json").write_text(json.dumps({"status": "completed", "versions": {"torch": "2.11"}}))
    backbone = hjepa_pl.load_encoder(path)
    assert (backbone.img_size, backbone.grid, backbone.patch_size) == ((16, 24), (4, 6), (4, 4))
    assert (backbone.in_chans, backbone.embed_dim) == (1, 32)
    assert (backbone.mean, backbone.std) == ((0.3,), (0.4,))
    assert backbone.metadata["hyper_parameters"]["predictor"]["depth"] == 1
    assert backbone.metadata["data"]["datasets"][0]["name"] == "digits"
    assert backbone.metadata["summary"]["status"] == "completed"
    assert backbone.metadata["versions"]["torch"] == "2.11"
    assert backbone.config.depth == 2


def test_an_image_level_alone_has_only_the_online_encoder(write) -> None:
    module, path = write(levels=[{"cell": "image"}])
    images = torch.randn(2, 3, 16, 16)
    backbone = hjepa_pl.load_encoder(path)
    assert backbone.branch == "online"
    assert_close(backbone(images), module.encode(images))
    with pytest.raises(ConfigError, match=r"invalid `branch=target`: the model of .* has no target encoder; use onl"):
        hjepa_pl.load_encoder(path, branch="target")


def test_inner_levels_do_not_hinder(write) -> None:
    levels = [{"cell": 1, "block": 1}, {"cell": 1}]
    module, path = write(levels=levels, predictor={"embed_dim": 24, "depth": 1, "num_heads": 2, "context": "fused"})
    assert any("inner_norms.1.weight" in name for name in module.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert_close(hjepa_pl.load_encoder(path)(images), module.encode(images))


def test_the_transform_is_the_probes_of_digits(write) -> None:
    """Sets in memory, as the data module itself gives them."""
    _, path = write(encoder=GRAY, data={"mean": [0.3], "std": [0.4]})
    data = MultiDatasetDataModule(
        "digits", probe="digits", augmentation="none", img_size=16, in_chans=1, mean=[0.3], std=[0.4]
    )
    data.setup("validate")
    batch = next(iter(data.val_dataloader()[0]))
    clean = data.on_after_batch_transfer(batch, 0)
    transform = hjepa_pl.load_encoder(path).transform()
    assert_close(transform(batch.image), clean.image, rtol=0, atol=0)
    assert_close(transform(batch.image[0]), clean.image[0], rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_the_transform_is_the_probes_of_files(mode, channels, tmp_path) -> None:
    """Paths and images of Pillow, as the loader of image files reads them."""
    array = np.random.default_rng(0).integers(0, 255, (40, 52, 4), dtype=np.uint8)
    image = Image.fromarray(array).convert(mode) if mode != "I;16" else Image.fromarray(array[..., 0].astype("u2") * 9)
    (tmp_path / "a").mkdir()
    image.save(file := tmp_path / "a" / "0.png")
    size, mean, std = (24, 32), (0.4,) * channels, (0.2,) * channels
    rows: RawClean = CleanRows(
        scan_folder("folder", find_tree("folder", str(tmp_path), "train")), torch.arange(1), size, channels
    )[[0]]
    clean = clean_batch(rows, ImageSpec(size, channels, mean, std), BadFiles(0.0, lambda: None)).image[0]
    transform = CleanTransform(size, channels, mean, std)
    assert_close(transform(file), clean, rtol=0, atol=0)
    with Image.open(file) as opened:
        assert_close(transform(opened), clean, rtol=0, atol=0)
        assert opened.load() is not None  # still open


def test_bad_files_are_one_sentence(write, tmp_path) -> None:
    _, path = write()
    foreign, cut, text = tmp_path / "foreign.ckpt", tmp_path / "cut.ckpt", tmp_path / "a.ckpt"
    torch.save({"state_dict": {"fc.weight": torch.zeros(2)}}, foreign)
    cut.write_bytes(path.read_bytes()[:5000])
    text.write_text("no checkpoint")
    content = torch.load(path, weights_only=True)
    name = "target_encoder.vit.norm.weight"
    broken = {}
    for kind, value in (("nan", torch.full((32,), float("nan"))), ("shape", torch.ones(31)), ("lacks", None)):
        state = {key: x for key, x in content["state_dict"].items() if key != name}
        torch.save(content | {"state_dict": state | ({} if value is None else {name: value})}, tmp_path / f"{kind}.pt")
        broken[kind] = tmp_path / f"{kind}.pt"
    for file, words in (
        (foreign, "is not a checkpoint of hjepa_pl"),
        (cut, "cannot be read as a checkpoint"),
        (text, "cannot be read as a checkpoint"),
        (tmp_path / "none.ckpt", "there is no file or folder"),
        (tmp_path / "results", "has no checkpoints/last.ckpt"),
        (broken["nan"], "not finite"),
        (broken["shape"], "another shape of the weight 'vit.norm.weight'"),
        (broken["lacks"], "lacks the weight 'vit.norm.weight'"),
    ):
        with pytest.raises(ConfigError, match=words) as raised:
            hjepa_pl.load_encoder(file)
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="invalid `branch=ema`: must be target or online"):
        hjepa_pl.load_encoder(path, branch="ema")


def test_wrong_images_are_one_sentence(write) -> None:
    backbone = hjepa_pl.load_encoder(write(encoder=GRAY)[1])
    with pytest.raises(ConfigError, match=r"pass a batch of floats \(B, 1, H, W\)"):
        backbone(torch.zeros(1, 1, 16, 16, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="cannot be encoded"):
        backbone(torch.zeros(1, 3, 16, 16))
    for wrong, words in (
        (torch.zeros(1, 16, 16), "pass uint8"),
        ("none.png", r"none.png cannot be read \(No such file"),
        (3, "pass an image of Pillow"),
    ):
        with pytest.raises(ConfigError, match=words):
            backbone.transform()(wrong)
    four = hjepa_pl.load_encoder(write(encoder={"in_chans": 4})[1])
    assert four(torch.randn(1, 4, 16, 16)).shape == (1, 32)
    with pytest.raises(ConfigError, match="the encoder takes 4 channels"):
        four.transform()


def test_lightning_is_not_imported(write) -> None:
    _, path = write()
    code = (
        "import sys, torch, hjepa_pl; b = hjepa_pl.load_encoder(sys.argv[1])\n"
        "b(b.transform()(torch.zeros(1, 3, 20, 20, dtype=torch.uint8)))\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('lightning', 'pytorch_lightning', 'torchmetrics')"
        " or m.startswith('hjepa_pl.modules')])"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
