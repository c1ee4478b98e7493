"""Checkpoints as a Trainer writes them, of modules with changed weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.modules.hjepa import HJEPALightningModule

PREDICTOR = {"embed_dim": 24, "depth": 1, "num_heads": 2}
PROJECTOR = {"hidden_dim": 32, "out_dim": 16}
ENCODER = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 4}


@pytest.fixture
def write(tmp_path) -> Callable[..., tuple[HJEPALightningModule, Path]]:
    """Return a writer of checkpoints; of its module every weight of both encoders is random, and differs."""

    def make(data: dict[str, Any] | None = None, **settings: Any) -> tuple[HJEPALightningModule, Path]:
        levels = settings.setdefault("levels", [{"cell": 1}])
        if any(level.get("cell") != "image" for level in levels):
            settings.setdefault("predictor", PREDICTOR)
        if any(level.get("cell") == "image" for level in levels):
            settings.setdefault("projector", PROJECTOR)
        module = HJEPALightningModule(**(settings | {"encoder": ENCODER | settings.get("encoder", {})}))
        for name, x in module.named_parameters():
            fixed = name.endswith("pos_embed") and module.context_encoder.config.position == "sincos"
            if "encoder." in name and not fixed:
                torch.nn.init.trunc_normal_(x.data, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.2)
        images = MultiDatasetDataModule(**({"datasets": "digits"} | (data or {})))
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.strategy.connect(module)
        module.trainer, trainer.datamodule = trainer, images
        path = tmp_path / "results" / "toy" / "checkpoints" / "last.ckpt"
        trainer.save_checkpoint(path)
        return module.eval(), path

    return make
