"""What people write in Python by habit: it works, or is one sentence that says what to write."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.data.config import DatasetConfig
from hjepa_pl.types import ConfigError


def test_an_encoder_by_size_or_by_timms_name() -> None:
    with torch.device("meta"):
        small, named = (HJEPALightningModule(encoder=e) for e in ("small", "vit_tiny_patch16_224"))
        assert small.encoder.vit.embed_dim == 384
        assert named.encoder.vit.embed_dim == 192
        assert named.hparams["encoder"]["name"] == "vit_tiny_patch16_224"
        with pytest.raises(ConfigError, match=r"invalid `encoder.name=vit_tinny`: is not a timm model"):
            HJEPALightningModule(encoder="vit_tinny")
        with pytest.raises(
            ConfigError, match=r"invalid `encoder=VisionTransformer`: must be settings, not a network.*use a timm name"
        ):
            HJEPALightningModule(encoder=timm.create_model("vit_tiny_patch16_224"))


def test_a_module_is_called_and_has_an_encoder(tiny_module) -> None:
    module = tiny_module().eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(module(images), module.encode(images), rtol=0, atol=0)
    assert module.encoder is module.target_encoder
    alone = tiny_module(levels=[{"cell": "image"}])
    assert alone.encoder is alone.context_encoder


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"torch.uint8 cannot be encoded: pass floats, \(x / 255 - mean"),
        (torch.zeros(3, 16, 16), r"must have shape \(B, 3, H, W\), got \(3, 16, 16\)"),
        (torch.zeros(2, 16, 16, 3), r"must have shape \(B, 3, H, W\), got \(2, 16, 16, 3\)"),
    ],
)
def test_raw_images_are_refused(tiny_module, images, said) -> None:
    module = tiny_module().eval()
    for use in (module, module.encode, module.encode_tokens):
        with pytest.raises(ConfigError, match=said):
            use(images)


def test_datasets_by_name_by_mapping_and_by_path(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    for given in ("digits", ["digits"], {"name": "digits"}, DatasetConfig(name="digits"), [{"name": "digits"}]):
        data = MultiDatasetDataModule(given, probe="digits", img_size=8, in_chans=1, augmentation="jepa")
        assert [d.name for d in data.datasets] == [p.name for p in data.probe] == ["digits"]
    for entry in ({"name": "folder", "root": tmp_path}, DatasetConfig(name="folder", root=tmp_path)):  # type: ignore
        data = MultiDatasetDataModule([entry], img_size=8, in_chans=1, augmentation="jepa")
        assert data.datasets[0].root == str(tmp_path)
        data.setup("predict")
        assert len(data.sets.train[0]) == 1
        torch.save(data.settings(), tmp_path / "settings.pt")
        torch.load(tmp_path / "settings.pt", weights_only=True)
    with pytest.raises(
        ConfigError, match=r"invalid `datasets.root=null`: must be the folder that holds the images \(dataset folder\)"
    ):
        MultiDatasetDataModule("folder", img_size=8).setup("fit")


def test_an_own_loader_is_refused_with_the_way_to_ones_images(tiny_module, tmp_path) -> None:
    loader = DataLoader(TensorDataset(torch.randn(4, 3, 16, 16)), batch_size=2)
    options = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    with pytest.raises(ConfigError, match=r"the batch is a list, not a ViewBatch.*'root': FOLDER"):
        pl.Trainer(default_root_dir=tmp_path, **options).fit(tiny_module(), loader)
    with pytest.raises(ConfigError, match=r"the validation batch is a list.*give the data module a labeled probe set"):
        pl.Trainer(default_root_dir=tmp_path, **options).fit(tiny_module(), loader, loader)
