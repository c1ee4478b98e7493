"""Every feature changes the plain model, and every pair trains two steps and is saved, loaded and used the same."""

import itertools
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.types import Counters, ViewBatch

BASE: dict[str, Any] = {
    "encoder": {"embed_dim": 24, "depth": 4, "num_heads": 2, "img_size": 16, "patch_size": 2},
    "levels": [{"cell": 1}, {"cell": 2}, {"cell": "image"}],
    "predictor": {"embed_dim": 24, "depth": 2, "num_heads": 2},
    "projector": {"hidden_dim": 16, "out_dim": 8},
}
FEATURES: dict[str, dict[str, Any]] = {
    "rope": {"encoder": {"position": "rope_mixed"}},
    "predictor rope": {"predictor": {"position": "rope"}},
    "layer scale": {"encoder": {"init_values": 0.1}, "predictor": {"init_values": 0.1}},
    "drop path": {"encoder": {"drop_path_rate": 0.3}},
    "registers": {"encoder": {"reg_tokens": 2}},
    "qk norm": {"encoder": {"qk_norm": True}},
    "attention": {"encoder": {"attention": "math"}},
    "checkpointing": {
        "encoder": {"grad_checkpointing": True, "checkpoint_every": 2},
        "predictor": {"grad_checkpointing": True},
    },
    "depths, fused": {
        "levels": [{"block": 2, "cell": 1}, {"cell": 2}, {"cell": "image"}],
        "predictor": {"context": "fused"},
    },
    "masked view": {"levels": [{"cell": 1}, {"cell": 2}, {"cell": "image", "masked_view": "replace"}]},
    "kept patches": {"levels": [{"cell": 1}, {"cell": 2}, {"cell": "image", "keep": 0.5}]},
    "cross attention": {"predictor": {"attention": "cross"}},
    "hierarchical masks": {"masks": {"kind": "hierarchical"}},
    "pyramid": {"pyramid": {"fusion": "concat", "dim": 16}},
    "one channel": {"encoder": {"in_chans": 1}},
    "wide images": {"encoder": {"img_size": [16, 24]}},
    "crops predicted": {"masks": {"strategy": "cross_crop_prediction"}},
    "NT-Xent": {"regularizers": [{"kind": "ntxent", "hard_negatives": 1.0}, {"kind": "sigreg"}]},
    "data2vec targets": {"target_norm": "instance", "target_blocks": 2},
    "level regulariser": {"regularizers": [{"kind": "vicreg", "stream": "last_c2"}, {"kind": "sigreg"}]},
    "image features": {
        "levels": [{"cell": 1}, {"cell": 2}, {"cell": "image", "block": 3, "compare": "pairwise"}],
        "projector": {"norm": "layer"},
    },
}
EXACT = {"attention", "checkpointing"}  # other kernels, or the same numbers a second time: equal gradients, on purpose
PAIRS = [*itertools.combinations(FEATURES, 2)]


def merge(*parts: dict[str, Any]) -> dict[str, Any]:
    """Merge settings key by key; of two lists of levels the keys of each level."""
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            old = merged.get(key)
            if isinstance(value, dict):
                merged[key] = {**(old or {}), **value}
            elif key == "levels" and old is not None:
                merged[key] = [{**a, **b} for a, b in zip(old, value, strict=True)]
            elif key == "regularizers" and old is not None:
                merged[key] = [*value[:1], *old]
            else:
                merged[key] = value
    return merged


def train(
    settings: dict[str, Any], start: dict[str, torch.Tensor] | None = None
) -> tuple[HJEPALightningModule, dict[str, torch.Tensor], torch.Tensor]:
    """Make a module and train it two steps on random views; return it, its first gradients and clean images.

    `start` holds the weights to begin with, where the names and shapes are the same.
    """
    torch.manual_seed(0)
    module = HJEPALightningModule(**settings).train()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if start is not None and name in start and start[name].shape == parameter.shape:
                parameter.copy_(start[name])
    config = module.context_encoder.config
    height, width = module.context_encoder.vit.patch_embed.img_size
    images = torch.randn(2, 4, config.in_chans, height, width, generator=torch.Generator().manual_seed(1))
    optimizer, gradients = module.configure_optimizers(), {}
    for step in range(2):
        torch.manual_seed(step)  # drop path
        label = torch.zeros(4, dtype=torch.int64)
        batch = ViewBatch((images[0], images[1]), label, label, Counters(0, step, torch.arange(4)))
        if module.mask_config.strategy != "global_only":
            boxes = torch.tensor([0.1, 0.1, 0.6, 0.7]).expand(4, 4, 4)
            batch = batch._replace(local_views=(images[0, ..., :8, :8], images[1, ..., :8, :8]), boxes=boxes)
        loss = module.compute(batch)[0]
        assert torch.isfinite(loss)
        loss.backward()
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        module.move_target(0.9)
    return module.eval(), gradients, images[0]


def use(module: HJEPALightningModule, images: torch.Tensor) -> list[torch.Tensor]:
    """Return everything that a user takes from a trained module."""
    maps = module.encode_pyramid(images) if module.pyramid is not None else []
    return [module.encode(images), module.encode_tokens(images), *maps]


@pytest.fixture(scope="module")
def plain() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The plain model's weights to begin with, and its gradients there."""
    torch.manual_seed(0)
    start = {n: p.detach().clone() for n, p in HJEPALightningModule(**BASE).named_parameters()}
    return start, train(BASE, start)[1]


@pytest.mark.parametrize("name", FEATURES)
def test_each_feature_changes_the_gradients(name, plain) -> None:
    """From the same weights, by the gradients of those that both models have."""
    start, without = plain
    found = train(merge(BASE, FEATURES[name]), start)[1]
    shared = [n for n, g in found.items() if n in without and g.shape == without[n].shape]
    assert "context_encoder.vit.blocks.0.mlp.fc1.weight" in shared
    same = all((found[n] - without[n]).norm() <= 1e-4 * without[n].norm() + 1e-5 for n in shared)
    assert same is (name in EXACT)


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=[" + ".join(pair) for pair in PAIRS])
def test_a_pair_trains_and_is_loaded_and_used_the_same(tmp_path, first, second) -> None:
    settings = merge(BASE, FEATURES[first], FEATURES[second])
    module, _, images = train(settings)
    for name, parameter in module.named_parameters():
        assert torch.isfinite(parameter).all(), name
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    module.trainer = trainer
    trainer.save_checkpoint(tmp_path / "pair.ckpt")
    again = HJEPALightningModule.load_from_checkpoint(tmp_path / "pair.ckpt", map_location="cpu").eval()
    assert again.hparams == module.hparams
    for mine, theirs in zip(use(module, images), use(again, images), strict=True):
        assert torch.equal(mine, theirs)
