"""Images of other channels and of other shapes than the square: real runs of the module on tensors."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from hjepa_pl.callbacks.collapse_monitor import CollapseMonitor
from hjepa_pl.types import Counters, ViewBatch
from tests.conftest import TINY

LEVELS = [{"block": 1, "cell": 1}, {"cell": 2}, {"cell": "image"}]


def batches(channels, size, count=2):
    generator = torch.Generator().manual_seed(3)
    zeros = torch.zeros(8, dtype=torch.int64)
    return [
        ViewBatch(
            tuple(torch.randn(8, channels, *size, generator=generator) for _ in range(2)),
            zeros, zeros, Counters(0, step, torch.arange(8)),
        )
        for step in range(count)
    ]  # fmt: skip


def train(module, channels, size, tmp_path):
    monitor = CollapseMonitor(every_n_steps=1)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, log_every_n_steps=1, callbacks=[monitor],
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches(channels, size), batch_size=None))
    assert trainer.global_step == 2
    return monitor


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_any_number_of_channels_train(tiny_module, tmp_path, channels) -> None:
    module = tiny_module(encoder=TINY | {"in_chans": channels}, levels=LEVELS)
    before = module.context_encoder.vit.patch_embed.proj.weight.detach().clone()
    assert before.shape[1] == channels
    train(module, channels, (16, 16), tmp_path)
    moved = (module.context_encoder.vit.patch_embed.proj.weight - before).abs().amax(dim=(0, 2, 3))
    assert (moved > 0).all()  # every channel is seen
    assert module.encode(torch.randn(3, channels, 16, 16)).shape == (3, 48)


@pytest.mark.parametrize("position", ["learned", "sincos", "rope"])
@pytest.mark.parametrize("kind", ["multiblock", "random"])
@pytest.mark.parametrize("size", [(8, 32), (24, 16)], ids=str)
def test_images_that_are_not_square_train_and_are_watched(tiny_module, tmp_path, position, kind, size) -> None:
    module = tiny_module(encoder=TINY | {"img_size": size, "position": position}, levels=LEVELS, masks={"kind": kind})
    assert module.hparams["encoder"]["img_size"] == list(size)
    assert module.context_encoder.grid == (size[0] // 2, size[1] // 2)
    monitor = train(module, 3, size, tmp_path)
    assert {"collapse/b1_c1/std", "collapse/last_c2/gain", "collapse/rank"} <= set(monitor.metrics)
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert module.encode_tokens(torch.randn(2, 3, *size)).shape == (2, size[0] * size[1] // 4, 48)


def test_coarse_targets_on_an_oblong_grid_are_means_of_its_own_cells(tiny_module) -> None:
    module = tiny_module(encoder=TINY | {"img_size": [8, 32]}, levels=[{"cell": 2}, {"cell": 4}])
    images = torch.randn(2, 3, 8, 32)
    tokens = module.target_encoder(images)["last"].reshape(2, 4, 16, 48)
    for cell, found in zip((2, 4), module.target_maps(images), strict=True):
        for place in range(64 // cell**2):
            y, x = divmod(place, 16 // cell)
            mean = tokens[:, y * cell : (y + 1) * cell, x * cell : (x + 1) * cell].mean(dim=(1, 2))
            torch.testing.assert_close(
                found[:, place], torch.nn.functional.layer_norm(mean, (48,)), atol=1e-5, rtol=1e-5
            )
