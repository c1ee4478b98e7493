"""Views that grow over the run (`data.resolution`)."""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.data.loading.resolution import ResolutionConfig
from hjepa_pl.data.loading.views import view_batch
from hjepa_pl.types import ConfigError
from tests.conftest import SMALL_PREDICTOR, SMALL_PROJECTOR, TINY

GROWING = {"start": 8, "until": 0.5}  # of 16 pixels and patches of 2: 8, 10, 12, 14, then 16


def model_of(keep: float = 1.0, **settings) -> HJEPALightningModule:
    torch.manual_seed(0)
    levels = [{"cell": "image", "keep": keep}]
    return HJEPALightningModule(**{"encoder": TINY, "projector": SMALL_PROJECTOR, "levels": levels, **settings})


def data_of(resolution: dict | None = GROWING, **settings) -> MultiDatasetDataModule:
    return MultiDatasetDataModule(
        **{"datasets": "fake", "batch_size": 8, "views": 2, "epoch_size": 32, "resolution": resolution, **settings}
    )


class _Passes(pl.Callback):
    """Notes the tokens of every forward pass of the encoder: by step in training, and in validation."""

    def __init__(self, stop_after: int = 10**6) -> None:
        self.train: list[int] = []
        self.clean: list[int] = []
        self.fractions: list[float] = []
        self.stop_after = stop_after

    def on_fit_start(self, trainer: pl.Trainer, module: HJEPALightningModule) -> None:
        def hook(net, args, out) -> None:
            (self.train if module.training else self.clean).append(out["last"].shape[1])

        module.context_encoder.register_forward_hook(hook)

    def on_train_batch_end(self, trainer: pl.Trainer, module: HJEPALightningModule, *_) -> None:
        self.fractions.append(module.progress.time_fraction)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: HJEPALightningModule) -> None:
        if trainer.current_epoch + 1 >= self.stop_after:
            trainer.should_stop = True


def fit(model: HJEPALightningModule, data: MultiDatasetDataModule, passes: _Passes, epochs: int = 4, **more):
    path = more.pop("ckpt_path", None)
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu", "max_epochs": epochs, "logger": False, "enable_progress_bar": False,
            "enable_model_summary": False, "enable_checkpointing": False, "callbacks": [passes],
            "num_sanity_val_steps": 0, **more,
        }
    )  # fmt: skip
    trainer.fit(model, data, ckpt_path=path)
    return trainer


def test_each_smaller_size_holds_for_an_equal_part_of_the_growth() -> None:
    growth = ResolutionConfig(start=16, until=0.5).growth(32, (4, 4))
    assert growth.sizes == tuple((n, n) for n in (16, 20, 24, 28, 32))
    sizes = [growth.at(step / 80)[0] for step in range(81)]
    assert sizes == [n for n in (16, 20, 24, 28) for _ in range(10)] + 41 * [32]
    assert ResolutionConfig(start=16, until=1).growth(24, (8, 8)).at(1.0) == (24, 24)
    wide = ResolutionConfig(start=(16, 24)).growth((32, 64), (8, 4)).sizes
    assert (wide[0], wide[-1], len(wide)) == ((16, 24), (32, 64), 11)
    assert all(h % 8 == w % 4 == 0 for h, w in wide)
    assert [w for _, w in wide] == list(range(24, 65, 4))
    assert sorted(wide) == list(wide)


@pytest.mark.parametrize(
    ("start", "use"),
    [(18, "4, 8, 12, 16, 20, 24 or 28"), (32, "4, 8"), (36, "4, 8"), ([16, 18], "4, 8"), ([16, 36], "4, 8")],
)
def test_a_start_that_does_not_fit_names_those_that_do(start, use) -> None:
    with pytest.raises(ConfigError, match=r"invalid `resolution.start=") as error:
        ResolutionConfig(start=start).growth(32, (4, 4))
    assert f"must be a multiple of the encoder's patch_size, below its img_size; use {use}" in str(error.value)


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        ({"levels": "three", "predictor": SMALL_PREDICTOR}, {}, "`data.resolution`: cannot be combined with token lev"),
        ({}, {"resolution": {"start": 9}}, "`resolution.start=9`: must be a multiple"),
        ({"keep": 0.02}, {}, r"`levels.keep=0.02`: keeps none of the 16 patches of a view of 8 x 8 pixels \(data.reso"),
        ({"keep": 0.98}, {}, r"`levels.keep=0.98`: keeps 16 of the 16 patches of a view of 8 x 8 pixels \(data.reso"),
        ({}, {"multicrop": {"local_size": 10}}, "`resolution.start=8`: must be at least the 10 x 10 pixels of a local"),
    ],
)
def test_what_cannot_grow_is_rejected(model, data, says) -> None:
    module = data_of(**data)
    with pytest.raises(ConfigError, match="invalid " + says):
        fit(model_of(**model), module, _Passes())
    assert not data.get("resolution") or module._train_data is None  # a size that does not fit, before data is read


def test_another_module_that_has_no_patches_is_rejected() -> None:
    class Plain(pl.LightningModule):
        img_size, in_chans = 16, 3

        def training_step(self, batch, batch_idx) -> None:
            """Never reached."""

        def configure_optimizers(self) -> None:
            """None."""

    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigError, match=r"invalid `data.resolution`: the module has no `patch_size` and `progress`"):
        trainer.fit(Plain(), data_of())


def test_the_encoder_sees_the_sizes_of_the_schedule_and_clean_images_in_full() -> None:
    passes = _Passes()
    data = data_of(probe=[{"name": "fake", "max_train": 20, "max_test": 20}])
    fit(model_of(), data, passes)  # 16 steps: two of each smaller size
    assert passes.train == [n for side in (4, 5, 6, 7) for n in 2 * [side**2]] + 8 * [64]
    assert set(passes.clean) == {64}
    kept = _Passes()
    fit(model_of(keep=0.5), data_of(multicrop={"local_views": 1, "local_size": 8}), kept)
    # Crops keep their size; of 25 patches half is 12.
    assert kept.train == [n for k in (8, 12, 18, 24) for n in 2 * [16, k]] + 8 * [16, 32]


def test_accumulated_batches_follow_the_optimizer_steps() -> None:
    passes = _Passes()
    fit(model_of(), data_of(), passes, accumulate_grad_batches=2)  # 8 steps of two batches
    assert passes.train == [n for side in (4, 5, 6, 7) for n in 2 * [side**2]] + 8 * [64]


def test_a_run_resumed_while_its_views_grow_ends_with_equal_weights(tmp_path: Path) -> None:
    whole, model = model_of(keep=0.5), model_of(keep=0.5)
    fit(whole, data_of(), _Passes())
    fit(model, data_of(), _Passes(stop_after=1)).save_checkpoint(tmp_path / "some.ckpt")
    resumed, passes = model_of(keep=0.5), _Passes()
    fit(resumed, data_of(), passes, ckpt_path=tmp_path / "some.ckpt")
    assert passes.train == [18, 18, 24, 24] + 8 * [32]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    plain = model_of(keep=0.5)
    fit(plain, data_of(None), _Passes())
    assert not torch.equal(plain.context_encoder.vit.norm.weight, whole.context_encoder.vit.norm.weight)


def test_under_a_time_budget_the_views_grow_by_the_clock() -> None:
    passes = _Passes()
    fit(model_of(time_budget="00:00:05"), data_of(), passes, epochs=-1)
    before = [0.0, *passes.fractions[:-1]]
    growth = ResolutionConfig(**GROWING).growth(16, (2, 2))
    assert passes.train == [(growth.at(f)[0] // 2) ** 2 for f in before]
    assert set(passes.train) == {16, 25, 36, 49, 64}


def test_a_small_view_shows_the_same_crop_from_memory_and_from_files(tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :64] / 64
    for i in range(16):
        picture = np.stack([127 + 120 * np.sin(3 * y + i), 127 + 120 * np.cos(4 * x + i), 255 * y * x], -1)
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(picture.astype(np.uint8)[: 64 - i % 3]).save(tmp_path / "a" / f"{i:02d}.png")
    plain = {"jitter": [0, 0, 0, 0], "gray": 0, "blur": 0, "solarize": 0}
    for source in ({"name": "folder", "root": str(tmp_path), "split": "train"}, {"name": "fake"}):
        data = data_of(datasets=[source], img_size=16, in_chans=3, epoch_size=16, augmentation=plain)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        assert (batch.groups[0].boxes is None) is (source["name"] == "fake")
        full = view_batch(batch, data._train_data.views, 3).views
        small = view_batch(batch, data._train_data.views, 3, (8, 8)).views
        for one, other in zip(full, small, strict=True):
            assert other.shape == (8, 3, 8, 8)
            expected = F.interpolate(one, size=(8, 8), mode="bilinear", antialias=True)
            assert float((other - expected).abs().mean()) < (0.05 if source["name"] == "folder" else 0.25)
            assert float((other - expected.flip(0)).abs().mean()) > 0.3


def test_settings_of_a_resume_hold_the_growth_where_there_is_one() -> None:
    assert data_of().settings()["resolution"] == {"start": 8, "until": 0.5}
    assert "resolution" not in data_of(None).settings()
