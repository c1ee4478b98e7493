"""Real runs on digits: each kind of collapse, caused on purpose, is named; what should prevent it does.

Tried besides, by hand (240 steps of this encoder, 2026-11-22), spread at steps 10 and 240: tokens without a moving
average .53, .005; with an image level behind a batch norm .60, .089 (ranks 6.5, 8.7: they do not see it), behind no
norm .61, .72; that with a moving average .60, .31; the image level alone behind a batch norm .37, .19. The encoder of
`benchmarks/collapse.py` without a moving average, image level behind a batch norm: .06 after 200 steps at rank 19, red
by `std` at step 300.
Green: quickstart.yaml, all of it, spread .46 to .60; digits_canvas.yaml, 100 steps, .11 to .25; on CIFAR-10 with a
narrow encoder, 100 steps, lejepa .82, cifar10 .73, features/cjepa .72, features/vicreg .75.
"""

import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import Tensor, nn

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.callbacks.collapse_monitor import CollapseMonitor

TOKENS, IMAGE = {"cell": 1, "weight": 0.1}, {"cell": "image"}
ALONE = {
    "sigreg on tokens": ([TOKENS], {"kind": "sigreg", "stream": "tokens"}),
    "vicreg on tokens": ([TOKENS], {"kind": "vicreg", "stream": "tokens", "weight": 0.2}),
    "sigreg on the image": ([TOKENS, IMAGE], {"kind": "sigreg"}),
    "vicreg on the image": ([TOKENS, IMAGE | {"compare": "none"}], {"kind": "vicreg", "weight": 0.2}),
    "ntxent on the image": ([TOKENS, IMAGE | {"compare": "none"}], {"kind": "ntxent", "weight": 1.0}),
}


def run(levels: list[dict], regularizers: list[dict], action: str = "warn", steps: int = 80) -> CollapseMonitor:
    """Train without a moving average and without a stopped gradient; return the monitor."""
    pl.seed_everything(0, verbose=False)
    module = HJEPALightningModule(
        encoder={"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 8, "patch_size": 2, "in_chans": 1},
        levels=levels,
        masks={"kind": "random"},
        predictor={"embed_dim": 24, "depth": 1, "num_heads": 2},
        projector={"hidden_dim": 64, "out_dim": 16} if len(levels) == 2 else {},
        regularizers=regularizers,
        level_scale="raw",
        optimizer={"lr": 4e-3},
        ema=None,
        experimental=True,
    )
    data = MultiDatasetDataModule(
        datasets=[{"name": "digits"}],
        batch_size=64,
        views=len(levels),
        augmentation={"preset": "jepa", "flip": 0.5},
    )
    monitor = CollapseMonitor(action=action, every_n_steps=10, window=256)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[monitor],
    )  # fmt: skip
    trainer.fit(module, data)
    assert monitor.stopped or trainer.global_step == steps
    return monitor


class Breaks(nn.Module):
    """The final norm of an encoder, with a defect in what it gives out."""

    def __init__(self, norm: nn.Module, kind: str) -> None:
        super().__init__()
        self.norm, self.kind, self.scale = norm, kind, 1.0
        self.register_buffer("direction", torch.linspace(-1, 1, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.kind == "direction":  # images differ along one direction only
            return x.mean(-1, keepdim=True) + (x @ self.direction)[..., None] * self.direction
        if self.kind == "image":  # every token of an image is the same vector
            mean = x.mean(1, keepdim=True)
            return 5 * (mean - mean.mean(0)) + 0.2 * x
        self.scale *= 0.9  # embeddings shrink towards their common mean
        return 3 * self.direction + self.scale * x


def broken(kind: str, image_only: bool = False) -> CollapseMonitor:
    """Train a few steps with a defect in every encoder; return the monitor."""
    encoder = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 8, "patch_size": 2, "in_chans": 1}
    keys = {"levels": [IMAGE], "projector": {"hidden_dim": 64, "out_dim": 16}}
    if not image_only:
        predictor = {"embed_dim": 24, "depth": 1, "num_heads": 2}
        keys = {"levels": "flat", "masks": {"kind": "random"}, "predictor": predictor}
    module = HJEPALightningModule(encoder=encoder, optimizer={"lr": 1e-4}, **keys)
    for net in filter(None, (module.context_encoder, module.target_encoder)):
        if kind == "position":  # tokens hardly depend on the pixels
            net.vit.patch_embed.proj.weight.data.mul_(1e-3)
            net.vit.pos_embed.data.mul_(20)
        else:
            net.vit.norm = Breaks(net.vit.norm, kind)
    data = MultiDatasetDataModule(
        datasets=[{"name": "digits"}], batch_size=64, views=2 if image_only else 1, augmentation={"preset": "jepa"}
    )
    monitor = CollapseMonitor(every_n_steps=5, window=128, patience=2)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=30, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[monitor],
    )  # fmt: skip
    trainer.fit(module, data)
    return monitor


@pytest.mark.parametrize(
    ("kind", "image_only", "says"),
    [
        ("position", False, "the position explains"),
        ("direction", False, "the effective rank is"),
        ("image", False, "common to all positions"),
        ("shrink", True, "below collapse.min_spread 0.05"),
    ],
)
@pytest.mark.filterwarnings("ignore:Collapse at step")
def test_each_collapse_caused_on_purpose_is_named(kind, image_only, says) -> None:
    monitor = broken(kind, image_only)
    assert monitor.status == "red", monitor.metrics
    assert says in monitor.message
    assert "model." in monitor.message
    if kind == "image":
        assert monitor.metrics["collapse/last_c1/power_image"] > 0.9  # `levels: flat` on CIFAR-10 reached 0.94
    if kind == "shrink":  # which neither the rank nor the loss behind the batch norm shows
        assert monitor.metrics["collapse/rank"] > 3
        assert "model.projector.norm to none" in monitor.message


@pytest.mark.filterwarnings("ignore:Collapse at step")
def test_without_anything_that_holds_it_a_run_collapses_and_is_stopped() -> None:
    monitor = run([TOKENS], [], action="stop")
    assert monitor.stopped
    assert monitor.status == "red"
    assert monitor.metrics["collapse/last_c1/std"] < 0.1
    assert "add {kind: sigreg" in monitor.message


@pytest.mark.parametrize("name", ["quickstart", "digits_canvas"])
def test_configs_that_learn_stay_green_from_the_first_steps_on(name) -> None:
    config = yaml.safe_load((Path(__file__).parents[1] / "configs" / f"{name}.yaml").read_text())
    pl.seed_everything(0, verbose=False)
    data = MultiDatasetDataModule(**config["data"]["init_args"] | {"probe": [], "batch_size": 32, "holdout": None})
    monitor = CollapseMonitor(every_n_steps=4, patience=1)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=12, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[monitor],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Collapse at step")
        trainer.fit(HJEPALightningModule(**config["model"]["init_args"]), data)
    assert monitor.status == "green"


@pytest.mark.parametrize("name", ALONE)
def test_each_regulariser_alone_keeps_it_from_collapse(name) -> None:
    levels, term = ALONE[name]
    monitor = run(levels, [term])
    assert monitor.status == "green", monitor.message
    assert monitor.metrics["collapse/rank"] > 2
