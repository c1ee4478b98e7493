"""Checkpoints of earlier versions load, and give the features that they gave."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from hjepa_pl import HJEPALightningModule, load_encoder
from hjepa_pl.data.sources.embedded import digits

HERE = Path(__file__).parent


@pytest.mark.parametrize("path", sorted(HERE.glob("golden*.ckpt")), ids=lambda path: path.stem)
def test_it_gives_the_features_of_its_version(path) -> None:
    expected = torch.tensor(json.loads(path.with_suffix(".json").read_text())["features"])
    backbone, images = load_encoder(path), digits("", "test").images[:3]
    clean = backbone.transform()(images)
    assert_close(backbone(clean), expected, rtol=0, atol=1e-5)
    assert_close(HJEPALightningModule.load_from_checkpoint(path).eval().encode(clean), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1
