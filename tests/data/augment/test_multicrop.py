"""Local crops: their boxes, their number in a step, and that the views do not change."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from hjepa_pl.cli.resume import check_same_settings
from hjepa_pl.data import MultiCropConfig, MultiDatasetDataModule
from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.data.augment.multicrop import view_plan
from hjepa_pl.data.loading.mixture import EpochPlan
from hjepa_pl.data.loading.train_data import TrainData
from hjepa_pl.data.loading.train_loader import TrainLoader
from hjepa_pl.data.loading.trainer_info import TrainerInfo
from hjepa_pl.data.loading.views import make_views
from hjepa_pl.data.sources.images import ArrayImages, FileImages
from hjepa_pl.types import ConfigError
from tests.data.test_datamodule import Watcher, digits, photographs, trainer

PLAIN = AugmentationConfig(crop_scale=(0.4, 1.0), jitter_prob=0, gray=0, solarize=0)


class Patched(Watcher):
    patch_size = (4, 4)


def ramp(height, width):
    """Return an image whose pixels hold their position: red across, green down, as fractions of the size."""
    y, x = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    planes = [x.expand(height, width), y[:, None].expand(height, width), torch.full((height, width), 0.5)]
    return (torch.stack(planes) * 255).round().to(torch.uint8)


def memory(side, n=16):
    return ArrayImages(ramp(side, side).expand(n, -1, -1, -1).contiguous(), torch.arange(n), ["x"])


@pytest.fixture
def files(tmp_path):
    paths = [str(tmp_path / f"{i:02}.png") for i in range(12)]
    for i, path in enumerate(paths):
        Image.fromarray(ramp(60 + 5 * i, 90).permute(1, 2, 0).numpy()).save(path)
    return FileImages(paths, torch.arange(12), ["x"])


def crops(size=32, augmentation=PLAIN, **multicrop):
    augmenter = Augmenter(augmentation, size, (0.0,) * 3, (1.0,) * 3, seed=3)
    config = MultiCropConfig(**({"local_views": 3, "local_size": 16} | multicrop))
    return view_plan(config, augmenter, 2, None)


def loader(sets, plan, batch=24, num_workers=0, **trainer):
    order = EpochPlan([len(s) for s in sets], [1.0] * len(sets), 48, seed=1)
    data = TrainData(sets, [f"set{i}" for i in range(len(sets))], order, plan, 3)
    return TrainLoader(data, batch_size=batch, num_workers=num_workers, trainer=TrainerInfo(**trainer))


@pytest.mark.parametrize("sides", [(32,), (96,), (), (32, 96, None)], ids=["upscaled", "memory", "files", "mixed"])
@pytest.mark.parametrize("size", [32, (24, 48)])
def test_boxes_hold_the_source_of_every_pixel(files, sides, size):
    sets = [files if side is None else memory(side) for side in sides or (None,)]
    plan = crops(size, local_size=(12, 16))
    batch = next(iter(loader(sets, plan)))
    views, boxes = make_views(batch, plan, 3)
    assert boxes.shape == (5, 24, 4)
    assert boxes.dtype == torch.float32
    assert [tuple(v.shape[1:]) for v in views] == [(3, *((size, size) if size == 32 else size))] * 2 + [(3, 12, 16)] * 3
    assert all(v.dtype == torch.float32 for v in views)
    assert 0 <= boxes.min() <= boxes.max() <= 1
    flipped = boxes[..., 1] > boxes[..., 3]
    assert 0.25 < flipped.float().mean() < 0.75
    for view, box in zip(views, boxes, strict=True):
        top, left, bottom, right = (b[:, None] for b in box.unbind(1))
        height, width = view.shape[2:]
        across = left + (torch.arange(width) + 0.5) / width * (right - left)
        down = top + (torch.arange(height) + 0.5) / height * (bottom - top)
        off = torch.stack([view[:, 0] - across[:, None], view[:, 1] - down[:, :, None]], 1).abs()
        # Bytes on the way in, and for files on the way out; at the rim the filter is cut off with the crop.
        assert off[:, 0, :, 2:-2].max() < 1.6 / 255
        assert off[:, 1, 2:-2].max() < 1.6 / 255
        assert off.max() < 0.02


def test_crop_areas_are_those_of_the_config(files):
    plan = crops(local_scale=(0.05, 0.3))
    for sets in ([memory(96)], [files]):
        batches = [make_views(b, plan, 3)[1] for b in loader(sets, plan)]
        boxes = torch.cat(batches, 1)
        area = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).abs()
        assert 0.39 < area[:2].min() < 0.6
        assert area[:2].max() > 0.8
        assert 0.045 < area[2:].min() < 0.1
        assert 0.25 < area[2:].max() < 0.31


def test_every_crop_is_another_and_other_epochs_differ():
    plan = crops()
    first, second = loader([memory(96)], plan), loader([memory(96)], plan, position=lambda: 2)
    boxes = [make_views(next(iter(x)), plan, 3)[1] for x in (first, second)]
    assert len({tuple(b) for b in boxes[0][:, 0].tolist()}) == 5
    assert (boxes[0] != boxes[1]).any(2).float().mean() > 0.9


def test_colors_act_on_local_crops():
    batch = next(iter(loader([memory(96)], crops())))
    for change in ({"jitter_prob": 1.0}, {"gray": 1.0}, {"solarize": 1.0}, {"blur": 1.0}):
        other = crops(augmentation=AugmentationConfig(**({"jitter_prob": 0, "gray": 0, "solarize": 0} | change)))
        plain, changed = make_views(batch, crops(), 3)[0], make_views(batch, other, 3)[0]
        difference = torch.cat([a - b for a, b in zip(plain[2:], changed[2:], strict=True)]).abs().amax((1, 2, 3))
        # One blur in ten is of less than 0.3 pixels, which is none.
        assert difference.gt(1e-3).float().mean() > (0.8 if "blur" in change else 0.95)


def test_halves_of_a_batch_are_cropped_as_the_whole(files):
    plan, sets = crops(augmentation=AugmentationConfig()), [memory(32), memory(96), files]
    whole = [make_views(b, plan, 3) for b in loader(sets, plan)]
    ranks = [[make_views(b, plan, 3) for b in loader(sets, plan, 12, world_size=2, rank=r)] for r in (0, 1)]
    for (views, boxes), *halves in zip(whole, *ranks, strict=True):
        assert torch.equal(boxes, torch.cat([h[1] for h in halves], 1))
        for v, view in enumerate(views):
            torch.testing.assert_close(view, torch.cat([h[0][v] for h in halves]), atol=1e-5, rtol=0)


def test_workers_change_nothing(files):
    plan, sets = crops(min_local_views=0, warmup_epochs=0.6), [memory(96), files]
    for a, b in zip(loader(sets, plan, 12), loader(sets, plan, 12, num_workers=2), strict=True):
        ours, theirs = make_views(a, plan, 3), make_views(b, plan, 3)
        assert torch.equal(ours[1], theirs[1])
        assert len(ours[0]) == len(theirs[0])
        assert all(torch.equal(x, y) for x, y in zip(ours[0], theirs[0], strict=True))


def test_global_views_are_those_without_multicrop(tmp_path):
    sets = [{"name": "fake"}, {"name": "folder", "root": photographs(tmp_path)}, {"name": "digits"}]
    # Of a size that no photograph is decoded smaller for, which all views of it would share.
    given = {"datasets": sets, "augmentation": {}, "in_chans": 3, "img_size": 96, "views": 2, "epoch_size": 64}
    batches = []
    for multicrop in (None, {"local_size": 48}):
        data = digits(**given, multicrop=multicrop, num_workers=0)
        data.setup("fit")
        raw = next(iter(data.train_dataloader()))
        batches.append(data.on_after_batch_transfer(raw, 0))
    without, with_crops = batches
    assert without.local_views == ()
    assert without.boxes is None
    assert [tuple(v.shape) for v in with_crops.local_views] == [(64, 3, 48, 48)] * 6
    assert with_crops.boxes.shape == (8, 64, 4)
    for a, b in zip(without.views, with_crops.views, strict=True):
        assert torch.equal(a, b)
    augmenter = Augmenter(data.augmentation, 96, *data.statistics(), seed=0)
    group = raw.groups[0]  # of `fake`, in memory
    counters = raw.counters._replace(position=raw.counters.position[group.rows])
    for v in (0, 1):
        golden = augmenter.view(group.images[0].float() / 255, counters, v)
        assert torch.equal(without.views[v][group.rows], golden)


def test_the_count_grows_by_the_step():
    config = MultiCropConfig(local_views=5, min_local_views=2, warmup_epochs=1.5)
    assert [config.count(s, 8) for s in range(14)] == [2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 5, 5]
    assert config.count(10**9, 8) == 5
    assert MultiCropConfig(local_views=5).count(0, 8) == 5
    short = MultiCropConfig(local_views=3, min_local_views=0, warmup_epochs=0.01)
    assert [short.count(s, 10) for s in range(2)] == [0, 3]


def test_a_resumed_run_has_the_crops_that_were_left(tmp_path):
    def data():
        growing = {"local_views": 3, "min_local_views": 0, "warmup_epochs": 1.6}
        return digits(img_size=16, in_chans=3, epoch_size=320, multicrop=growing)

    whole = Patched()
    trainer(tmp_path, max_epochs=2).fit(whole, data())
    assert [len(b.local_views) for b in whole.batches] == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
    assert [len(b.boxes) for b in whole.batches] == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    first, second = Patched(), Patched()
    keep = pl.callbacks.ModelCheckpoint(tmp_path, "x", every_n_train_steps=3, save_on_train_epoch_end=False)
    trainer(tmp_path, max_steps=4, max_epochs=2, enable_checkpointing=True, callbacks=[keep]).fit(first, data())
    trainer(tmp_path, max_epochs=2).fit(second, data(), ckpt_path=tmp_path / "x.ckpt")
    resumed = first.batches[:3] + second.batches
    for a, b in zip(whole.batches, resumed, strict=True):
        assert torch.equal(a.boxes, b.boxes)
        assert all(torch.equal(x, y) for x, y in zip(a.local_views, b.local_views, strict=True))
    assert {tuple(v.shape[1:]) for b in second.batches for v in b.local_views} == {(3, 8, 8)}


def test_a_resume_with_other_crops_is_rejected():
    old, new = (digits(multicrop=m).settings() for m in ({"local_size": [4, 8]}, {"local_size": 4}))
    with pytest.raises(ConfigError, match=r"multicrop.local_size was \[4, 8\], is 4"):
        check_same_settings({"data": old}, {"data": new}, override=False)
    with pytest.raises(ConfigError, match=r"multicrop.local_views was null, is 6"):
        check_same_settings({"data": digits().settings()}, {"data": new}, override=False)


@pytest.mark.parametrize(
    ("view", "patch", "size"),
    [(224, 16, (96, 96)), (32, 4, (16, 16)), (96, 8, (48, 48)), ((96, 224), 16, (48, 96)), (16, 16, (16, 16))],
)
def test_the_size_is_three_sevenths_in_whole_patches(view, patch, size):
    assert MultiCropConfig().local_sides(view, (patch, patch)) == size


REJECTED = {
    "local_views=0": ({"local_views": 0}, "invalid `multicrop.local_views=0`: must be a whole number >= 1."),
    "reversed": (
        {"local_scale": [0.3, 0.1]},
        r"`multicrop.local_scale=\[0.3, 0.1\]`: must be .*; the smaller one first.",
    ),
    "beyond": (
        {"local_scale": [0.3, 1.1]},
        r"`multicrop.local_scale=\[0.3, 1.1\]`: must be a list of 2 numbers in \(0, 1\]",
    ),
    "zero": (
        {"local_scale": [0.0, 0.1]},
        r"`multicrop.local_scale=\[0, 0.1\]`: must be a list of 2 numbers in \(0, 1\]",
    ),
    "no size": (
        {"local_size": [8, 8, 8]},
        r"invalid `multicrop.local_size=\[8, 8, 8\]`: must be a whole number >= 1, a list of 2",
    ),
    "min alone": (
        {"min_local_views": 2},
        "`multicrop.min_local_views=2`: has no effect without multicrop.warmup_epochs; set both",
    ),
    "warm-up alone": (
        {"warmup_epochs": 2},
        "`multicrop.warmup_epochs=2`: has no effect without multicrop.min_local_views; set both",
    ),
    "min": (
        {"min_local_views": 6, "warmup_epochs": 1},
        "`multicrop.min_local_views=6`: must be less than multicrop.local_views=6; lower it",
    ),
    "negative": (
        {"min_local_views": -1, "warmup_epochs": 1},
        "`multicrop.min_local_views=-1`: must be a whole number >= 0 or null.",
    ),
    "warm-up": (
        {"min_local_views": 1, "warmup_epochs": 0},
        "`multicrop.warmup_epochs=0`: must be a number > 0 or null.",
    ),
    "unknown": ({"size": 8}, "multicrop does not accept 'size'"),
}


@pytest.mark.parametrize(("multicrop", "message"), REJECTED.values(), ids=REJECTED)
def test_rejected_configs(multicrop, message):
    with pytest.raises(ConfigError, match=message):
        digits(multicrop=multicrop)


@pytest.mark.parametrize(
    ("multicrop", "message"),
    [
        ({"local_size": 20}, "invalid `multicrop.local_size=20`: must be at most the size of a view; use 16 or less."),
        ({"local_size": 2}, "`multicrop.local_size=2`: must be a multiple of the encoder's patch_size=4; use 4."),
        ({"local_size": [8, 10]}, r"`multicrop.local_size=\[8, 10\]`: must be a multiple .*; use 8 or \[8, 12\]."),
    ],
)
def test_sizes_are_rejected_before_anything_is_loaded(tmp_path, multicrop, message):
    data = MultiDatasetDataModule(
        [{"name": "folder", "root": str(tmp_path / "missing")}], batch_size=4, multicrop=multicrop
    )
    data.prepare_data = lambda: None
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path).fit(Patched(), data)


def test_without_an_encoder_the_size_must_be_set():
    data = digits(multicrop={})
    with pytest.raises(ConfigError, match=r"invalid `multicrop.local_size=null`: the module has no `patch_size`"):
        data.setup("fit")
    data.setup("validate")  # no crop is made there
    data = digits(multicrop={"local_size": 8})  # as large as the views
    data.setup("fit")


def test_probe_batches_are_unchanged(tmp_path):
    module, given = Patched(), {"probe": [{"name": "digits", "max_test": 32}], "img_size": 16, "in_chans": 3}
    runner = trainer(tmp_path, max_steps=1)
    runner.fit(module, digits(**given, multicrop={"local_views": 2}))
    plain = digits(**given)
    plain.setup("validate")
    expected = plain.on_after_batch_transfer(next(iter(plain.val_dataloader()[1])), 0)
    seen = next(b for i, b in module.clean if i == 1)
    assert np.array_equal(seen.image.numpy(), expected.image.numpy())


@pytest.mark.parametrize(("given", "views"), [("{}", 6), ("{local_views: 4}", 4), ("null", None)])
def test_as_the_command_line_reads_it(given, views):
    parser = ArgumentParser()
    parser.add_subclass_arguments(MultiDatasetDataModule, "data")
    words = ["--data=MultiDatasetDataModule", "--data.datasets=[{name: digits}]", f"--data.multicrop={given}"]
    data = parser.instantiate_classes(parser.parse_args(words)).data
    assert data.multicrop == (None if views is None else MultiCropConfig(local_views=views))
