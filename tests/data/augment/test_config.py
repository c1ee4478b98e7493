"""Presets, rejected values, and views that a real data module makes of them."""

from dataclasses import asdict

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from hjepa_pl import HJEPALightningModule
from hjepa_pl.data import AugmentationConfig, MultiDatasetDataModule
from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.config import augmentation_config
from hjepa_pl.data.augment.crop_resize import CROP_NUMBERS
from hjepa_pl.data.augment.random_erasing import erase
from hjepa_pl.functional.counters import uniform
from hjepa_pl.types import CleanBatch, ConfigError, Counters, ViewBatch

OFF = {
    "flip": 0, "jitter": (0, 0, 0, 0), "jitter_prob": 0, "gray": 0, "blur": 0, "solarize": 0, "rotate": 0,
    "translate": 0, "rand_augment": 0, "rand_magnitude": None, "three_augment": False, "erase": 0, "erase_scale": None,
    "erase_ratio": None, "mixup": 0, "cutmix": 0, "preset": None, "crop_ratio": (3 / 4, 4 / 3), "extra": None,
}  # fmt: skip
PUBLISHED = {
    "small": {"crop_scale": (0.2, 1), "flip": 0.5, "jitter": (0.4, 0.4, 0.2, 0.1), "jitter_prob": 0.8, "gray": 0.2,
              "solarize": 0.1},
    "jepa": {"crop_scale": (0.3, 1)},
    "simclr": {"crop_scale": (0.08, 1), "flip": 0.5, "jitter": (0.8, 0.8, 0.8, 0.2), "jitter_prob": 0.8, "gray": 0.2,
               "blur": 0.5},
    "deit3": {"crop_scale": (0.08, 1), "flip": 0.5, "jitter": (0.3, 0.3, 0.3, 0), "jitter_prob": 1,
              "three_augment": True, "mixup": 0.8, "cutmix": 1},
    "none": {"crop_scale": (1, 1), "crop_ratio": (1, 1)},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_parts(name):
    assert asdict(augmentation_config(name)) == OFF | PUBLISHED[name]
    assert augmentation_config({"preset": name}) == augmentation_config(name)
    again = AugmentationConfig(**asdict(augmentation_config(name)))  # resolved values are a config of their own
    assert again == augmentation_config(name)


def test_explicit_keys_override_the_preset():
    parts = augmentation_config({"preset": "deit3", "mixup": 0.0, "erase": 0.25, "rand_augment": 2})
    expected = OFF | PUBLISHED["deit3"] | {"mixup": 0, "erase": 0.25, "rand_augment": 2}
    needed = {"rand_magnitude": 9, "erase_scale": (0.02, 0.33), "erase_ratio": (0.3, 3.3)}
    assert asdict(parts) == expected | needed
    assert AugmentationConfig(**asdict(parts)) == parts
    assert AugmentationConfig() == augmentation_config("small")


NAN = float("nan")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("deit4", "invalid `augmentation=deit4`: must be small, jepa, simclr, deit3 or none, or a mapping of keys."),
        (
            {"preset": "odd"},
            "invalid `augmentation.preset=odd`: must be small, jepa, simclr, deit3, none or null.",
        ),
        (None, "invalid `augmentation=null`: must be small, jepa, simclr, deit3 or none, or a mapping of keys."),
        ({"rand_augment": -1}, "invalid `augmentation.rand_augment=-1`: must be a whole number >= 0."),
        ({"rand_augment": 2.5}, "invalid `augmentation.rand_augment=2.5`: must be a whole number >= 0."),
        (
            {"rand_augment": 2, "rand_magnitude": 31},
            r"invalid `augmentation.rand_magnitude=31`: must be a whole number in \[0, 30\] or null.",
        ),
        (
            {"rand_augment": 2, "rand_magnitude": -1},
            "invalid `augmentation.rand_magnitude=-1`: must be a whole number in",
        ),
        (
            {"rand_magnitude": 9},
            "invalid `augmentation.rand_magnitude=9`: has no effect without rand_augment; set augmentation.rand_aug",
        ),
        ({"rand_augment": 0, "rand_magnitude": 5}, "rand_magnitude=5`: has no effect without rand_augment"),
        ({"three_augment": 1}, "invalid `augmentation.three_augment=1`: must be true or false."),
        ({"erase": 1.5}, r"invalid `augmentation.erase=1.5`: must be a number in \[0, 1\]."),
        ({"erase": NAN}, "invalid `augmentation.erase=nan`"),
        ({"erase_scale": (0.1, 0.2)}, r"`augmentation.erase_scale=\[0.1, 0.2\]`: has no effect without erase; set"),
        ({"erase_ratio": (0.5, 2)}, "erase_ratio=.*: has no effect without erase; set"),
        (
            {"erase": 0.5, "erase_scale": (0.5, 0.1)},
            r"`augmentation.erase_scale=\[0.5, 0.1\]`: must be .*; the smaller one first.",
        ),
        (
            {"erase": 0.5, "erase_scale": (0.5, 1.1)},
            r"`augmentation.erase_scale=\[0.5, 1.1\]`: must be a list of 2 numbers in \(0, 1\]",
        ),
        (
            {"erase": 0.5, "erase_ratio": (0, 1)},
            r"`augmentation.erase_ratio=\[0, 1\]`: must be a list of 2 numbers > 0",
        ),
        ({"erase": 0.5, "erase_ratio": (NAN, 1)}, r"augmentation.erase_ratio=\[nan, 1\]"),
        ({"mixup": -0.1}, "invalid `augmentation.mixup=-0.1`: must be a number >= 0."),
        ({"mixup": NAN}, "augmentation.mixup=nan"),
        ({"cutmix": -1}, "augmentation.cutmix=-1"),
        ({"cutmix": float("inf")}, "augmentation.cutmix=inf"),
        (
            {"jitter": [0, 0, 0, 0], "jitter_prob": 0.8},
            r"`augmentation.jitter_prob=0.8`: has no effect with augmentation.jitter=\[0, 0, 0, 0\]",
        ),
        ({"preset": "jepa", "jitter_prob": 0.5}, "jitter_prob=0.5`: has no effect with augmentation.jitter="),
        (
            {"preset": "jepa", "jitter": [0.4, 0, 0, 0]},
            "has no effect with augmentation.jitter_prob=0; set jitter_prob",
        ),
        (
            PUBLISHED["deit3"] | {k: v for k, v in OFF.items() if v is not None} | {"preset": "deit3"},
            "has no effect where every other key is set",
        ),
    ],
)
def test_rejected_values(parts, message):
    with pytest.raises(ConfigError, match=message) as caught:
        MultiDatasetDataModule([{"name": "digits"}], augmentation=parts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"augmentation": "none", "views": 2},
            "invalid `data.views=2`: all views would be the same, .*; set views to 1",
        ),
        ({"augmentation": {"preset": "none", "mixup": 0.8}, "views": 2}, "`data.views=2`: all views would be the same"),
        (
            {"augmentation": "deit3", "batch_size": 33},
            "invalid `data.batch_size=33`: must be even with augmentation.mixup=0.8, .*; set it to 34.",
        ),
        (
            {"augmentation": {"cutmix": 1.0}, "batch_size": 3},
            "invalid `data.batch_size=3`: must be even with augmentation.cutmix=1, .*; set it to 4.",
        ),
        (
            {"augmentation": "deit3", "in_chans": 1},
            r"`augmentation.jitter=\[0.3, 0.3, 0.3, 0\]`: changes colors, .*set it to \[0.3, 0.3, 0, 0\].",
        ),
        (
            {"augmentation": "simclr", "in_chans": 1},
            r"`augmentation.jitter=\[0.8, .*`: changes colors, .*set it to \[0.8, 0.8, 0, 0\].",
        ),
    ],
)
def test_rejected_combinations(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        MultiDatasetDataModule([{"name": "fake"}], **kwargs)


@pytest.mark.parametrize("change", [{"flip": 0.5}, {"erase": 0.5}, {"three_augment": True}, {"crop_scale": (0.5, 1)}])
def test_none_with_a_random_part_has_different_views(change):
    assert MultiDatasetDataModule([{"name": "fake"}], views=2, augmentation={"preset": "none"} | change).views == 2


def photographs(folder, n=4):
    for split in ("train", "val"):
        (folder / split / "a").mkdir(parents=True)
        for i in range(n):
            array = np.random.default_rng(i).integers(0, 256, (50 + 9 * i, 90, 3), dtype=np.uint8)
            Image.fromarray(array).save(folder / split / "a" / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize("name", ["folder", "stripes", "digits"])
def test_none_is_what_probes_see(tmp_path, name):
    """Photographs that are cut in the workers; images in memory, larger and smaller than the view."""
    source = {"name": "digits"} if name == "digits" else {"name": "folder", "root": photographs(tmp_path / "data")}
    size = 24 if name != "stripes" else (20, 36)
    data = MultiDatasetDataModule(
        [source], batch_size=4, augmentation="none", img_size=size, in_chans=3, num_workers=None
    )
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    clean = [data.on_after_batch_transfer(b, 0) for b in data.predict_dataloader()[0]]
    bank = torch.cat([b.image for b in clean])
    assert all(any(torch.equal(view, image) for image in bank) for view in batch.views[0])


@pytest.mark.parametrize("parts", [{"rand_augment": 2}, {"three_augment": True}])
def test_gray_images_are_changed_without_color_operations(parts):
    """One channel, and three equal ones, draw alike: color operations are left out of both."""
    gray = {"preset": "none"} | parts
    one, three = (MultiDatasetDataModule([{"name": "digits"}], 64, augmentation=gray, img_size=16, in_chans=c)
                  for c in (1, 3))  # fmt: skip
    views = []
    for data in (one, three):
        data.mean, data.std = (0.0,) * data.in_chans, (1.0,) * data.in_chans
        data.setup("fit")
        views.append(data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0).views[0])
    # Tensor sums of three channels and of one differ in the last bit, which bins of values may magnify in few pixels.
    assert ((views[0] - views[1]).abs() > 1e-4).float().mean() < 0.01


class Watcher(pl.LightningModule):
    img_size, in_chans = 16, 3

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return self.layer(batch.views[0].mean((2, 3))).square().mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.seen.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-4)


QUIET = {
    "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu",
    "enable_checkpointing": False, "max_epochs": 1, "log_every_n_steps": 1,
}  # fmt: skip


def test_training_batches_are_mixed_and_clean_ones_never(tmp_path):
    def run(augmentation):
        data = MultiDatasetDataModule(
            [{"name": "fake"}], 16, 2, epoch_size=64, augmentation=augmentation,
            probe=[{"name": "digits", "max_train": 20, "max_test": 20}],
        )  # fmt: skip
        module = Watcher()
        pl.Trainer(**QUIET, default_root_dir=tmp_path, num_sanity_val_steps=0).fit(module, data)
        return module.seen

    mixed, plain = run({"mixup": 0.8, "cutmix": 1.0}), run({})
    assert [type(b) for b in mixed] == [type(b) for b in plain]
    assert {type(b) for b in mixed} == {ViewBatch, CleanBatch}
    for a, b in zip(mixed, plain, strict=True):
        if isinstance(a, CleanBatch):
            assert torch.equal(a.image, b.image)
            continue
        assert b.mix is None
        assert torch.equal(a.label, b.label)  # of the image itself, beside the partner's
        assert torch.equal(a.mix.label, b.label.view(-1, 2).flip(1).flatten())
        assert a.mix.label.dtype == torch.int64
        assert not any(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


@pytest.mark.parametrize(
    ("data", "augmentation"),
    [
        ({"name": "fake"}, "deit3"),
        ({"name": "fake"}, "simclr"),
        ({"name": "fake"}, {"preset": "jepa", "rand_augment": 2, "erase": 0.25}),
        ({"name": "digits"}, {"preset": "deit3", "jitter": (0.3, 0.3, 0, 0)}),
    ],
)
def test_presets_train(tmp_path, data, augmentation):
    module = HJEPALightningModule(
        encoder={"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 4},
        predictor={"embed_dim": 24, "depth": 1, "num_heads": 2}, projector={"hidden_dim": 32, "out_dim": 16},
    )  # fmt: skip
    before = module.context_encoder.vit.patch_embed.proj.weight.detach().clone()
    data = MultiDatasetDataModule([data], 16, 2, epoch_size=32, augmentation=augmentation)
    trainer = pl.Trainer(**QUIET, default_root_dir=tmp_path)
    trainer.fit(module, data)
    assert trainer.global_step == 2
    assert all(p.isfinite().all() for p in module.parameters())
    assert not torch.equal(before, module.context_encoder.vit.patch_embed.proj.weight)


EVERYTHING = {
    "preset": "simclr", "solarize": 0.3, "rotate": 20, "translate": 0.1, "rand_augment": 3, "three_augment": True,
    "erase": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("size", [16, 48, (24, 40)])
def test_a_sample_looks_the_same_however_the_batch_is_split(size):
    augment = Augmenter(augmentation_config(EVERYTHING), size, (0.5,) * 3, (0.25,) * 3, seed=5)
    x = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    whole = augment.view(x, Counters(2, 9, torch.arange(64)), 1)
    halves = [augment.view(x[i : i + 32], Counters(2, 9, torch.arange(i, i + 32)), 1) for i in (0, 32)]
    assert torch.equal(whole, torch.cat(halves))


@pytest.mark.parametrize("part", [{"rand_augment": 1}, {"three_augment": True}, {"erase": 0.5}])
@pytest.mark.parametrize("change", ["epoch", "position", "view", "seed", "step", "global"])
def test_parts_depend_on_their_counters_alone(part, change):
    parts = augmentation_config({"preset": "none"} | part)
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).expand(32, -1, -1, -1)

    def view(epoch=0, position=0, view=0, seed=5, step=0):
        augment = Augmenter(parts, 16, (0.5,) * 3, (0.25,) * 3, seed=seed)
        return augment.view(x, Counters(epoch, step, torch.arange(32) + position), view)

    base = view()
    if change == "global":
        torch.manual_seed(99)
        assert torch.equal(view(), base)
    else:
        assert torch.equal(view(**{change: 32}), base) == (change == "step")  # no part of an image depends on the step


@pytest.mark.parametrize("part", [{"rand_augment": 1}, {"three_augment": True}, {"erase": 1.0}])
def test_a_part_changes_the_view_when_on(part):
    x = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    on, off = (
        Augmenter(augmentation_config({"preset": "none"} | p), 16, (0.5,) * 3, (0.25,) * 3, seed=5).view(
            x, Counters(0, 0, torch.arange(32)), 0
        )
        for p in (part, {})
    )
    assert torch.equal(off, (x - 0.5) / 0.25)
    assert ((on - off).abs().amax((1, 2, 3)) > 1e-3).sum() >= 25  # RandAugment's identity is one of 14


def test_a_box_too_small_to_be_drawn_erases_nothing_rather_than_everything() -> None:
    images = torch.ones(64, 3, 32, 32)
    u = uniform(1, torch.arange(64), 1), uniform(2, torch.arange(64), CROP_NUMBERS)
    tiny = erase(images, u, 1.0, (1e-4, 2e-4), (0.3, 3.3))
    assert float((tiny == 0).float().mean()) < 0.01
    usual = erase(images, u, 1.0, (0.02, 0.33), (0.3, 3.3))
    assert 0.1 < float((usual == 0).float().mean()) < 0.25
