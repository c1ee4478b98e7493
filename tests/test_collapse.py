"""A model that must collapse is seen to, and each regulariser alone keeps it from collapse: real runs on digits."""

import lightning.pytorch as pl
import pytest

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


@pytest.mark.filterwarnings("ignore:Collapse at step")
def test_without_anything_that_holds_it_a_run_collapses_and_is_stopped() -> None:
    monitor = run([TOKENS], [], action="stop")
    assert monitor.stopped
    assert monitor.status == "red"
    assert monitor.metrics["collapse/last_c1/std"] < 0.1
    assert "add {kind: sigreg" in monitor.message


@pytest.mark.parametrize("name", ALONE)
def test_each_regulariser_alone_keeps_it_from_collapse(name) -> None:
    levels, term = ALONE[name]
    monitor = run(levels, [term])
    assert monitor.status == "green", monitor.message
    assert monitor.metrics["collapse/rank"] > 2
