import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from hjepa_pl.data import MultiDatasetDataModule
from hjepa_pl.types import CleanBatch, ConfigError, ViewBatch

GRAY = {"gray": 0.0, "jitter": (0.4, 0.4, 0.0, 0.0)}


def digits(**kwargs):
    given = {"datasets": [{"name": "digits"}], "augmentation": GRAY, "img_size": 8, "in_chans": 1, "batch_size": 64}
    return MultiDatasetDataModule(**(given | kwargs))


def photographs(folder, n=8, side=40):
    for split in ("train", "val"):
        for c in ("a", "b"):
            (folder / split / c).mkdir(parents=True)
            for i in range(n):
                rng = np.random.default_rng(i)
                array = rng.integers(0, 256, (side + i * 8, side * 3, 3), dtype=np.uint8)
                Image.fromarray(array).save(folder / split / c / f"{i}.jpg")
    return str(folder)


class Watcher(pl.LightningModule):
    img_size, in_chans = 16, 3

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3 * 16 * 16, 2)
        self.batches, self.clean = [], []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return self.layer(batch.views[0].flatten(1)).square().mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.clean.append((dataloader_idx, batch))

    test_step = validation_step

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return batch.label

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-4)


def trainer(tmp_path, **kwargs):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(
        **({"max_epochs": 1, "default_root_dir": tmp_path, "enable_checkpointing": False} | quiet | kwargs)
    )


def test_probe_splits_and_clean_batches():
    data = digits(probe=[{"name": "digits", "max_train": 100, "title": "d"}, {"name": "digits_canvas", "max_test": 50}])
    data.setup("fit")
    assert [tuple(s) for s in data.probe_splits] == [
        ("d", "train", 10, 100),
        ("d", "test", 10, 359),
        ("digits_canvas", "train", 10, 1438),
        ("digits_canvas", "test", 10, 50),
    ]
    loaders = data.val_dataloader()
    for split, loader in zip(data.probe_splits, loaders, strict=True):
        batches = [data.on_after_batch_transfer(b, 0) for b in loader]
        assert torch.cat([b.place for b in batches]).tolist() == list(range(split.size))
        assert all(isinstance(b, CleanBatch) and b.image.shape[1:] == (1, 8, 8) for b in batches)
    bank = torch.cat([b.label for b in loaders[0]])
    assert torch.bincount(bank).tolist() == [10] * 10
    raw = next(iter(loaders[1]))
    clean = data.on_after_batch_transfer(raw, 0)
    torch.testing.assert_close(clean.image * 0.25 + 0.5, raw.image / 255)


@pytest.mark.parametrize("views", [1, 3])
def test_training_batch(views):
    data = digits(views=views, img_size=12, in_chans=3)
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert isinstance(batch, ViewBatch)
    assert [tuple(v.shape) for v in batch.views] == [(64, 3, 12, 12)] * views
    assert batch.label.shape == batch.source.shape == batch.counters.position.shape == (64,)
    if views > 1:
        assert not torch.equal(batch.views[0], batch.views[1])


def test_fit_validate_test_and_predict_with_files_and_memory(tmp_path):
    root = photographs(tmp_path / "data")
    data = MultiDatasetDataModule(
        [{"name": "fake", "weight": 3}, {"name": "folder", "root": root}, {"name": "digits"}],
        batch_size=8,
        epoch_size=64,
        views=2,
        probe=[{"name": "folder", "root": root}],
        num_workers=0,
        eval_batch_size=5,
    )
    module, runner = Watcher(), trainer(tmp_path, max_epochs=2)
    runner.fit(module, data)
    assert [b.counters[:2] for b in module.batches] == [(s // 8, s) for s in range(16)]
    assert data.share_drawn(0) == pytest.approx({"fake": 38 / 64, "folder": 13 / 64, "digits": 13 / 64})
    drawn = torch.bincount(torch.cat([b.source for b in module.batches[:8]])) / 64
    assert drawn.tolist() == pytest.approx(list(data.share_drawn(0).values()))
    assert all(v.shape == (8, 3, 16, 16) and v.isfinite().all() for b in module.batches for v in b.views)
    assert [s.size for s in data.probe_splits] == [16, 16]
    module.clean.clear()
    runner.test(module, data, verbose=False)
    assert torch.cat([b.place for i, b in module.clean if i == 1]).tolist() == list(range(16))
    assert module.clean[0][1].image.shape == (5, 3, 16, 16)
    labels = runner.predict(module, data)
    assert [sum(map(len, part)) for part in labels] == [256, 16, 1438]


def test_resumed_run_sees_what_was_left(tmp_path):
    def data():
        return digits(img_size=16, in_chans=3, epoch_size=320)

    whole = Watcher()
    trainer(tmp_path, max_epochs=2).fit(whole, data())
    first, second = Watcher(), Watcher()
    keep = pl.callbacks.ModelCheckpoint(tmp_path, "x", every_n_train_steps=7, save_on_train_epoch_end=False)
    trainer(tmp_path, max_steps=8, max_epochs=2, enable_checkpointing=True, callbacks=[keep]).fit(first, data())
    torch.load(tmp_path / "x.ckpt", weights_only=True)
    trainer(tmp_path, max_epochs=2).fit(second, data(), ckpt_path=tmp_path / "x.ckpt")
    resumed = first.batches[:7] + second.batches
    assert [b.counters.step for b in resumed] == list(range(10))
    for a, b in zip(whole.batches, resumed, strict=True):
        assert torch.equal(a.views[0], b.views[0])
    assert torch.equal(whole.layer.weight, second.layer.weight)


def test_geometry_is_the_modules_or_asked_for(tmp_path):
    data = digits(img_size=None, in_chans=None)
    with pytest.raises(
        ConfigError, match=r"invalid `data.img_size=null`: must be set, as the module has no `img_size`"
    ):
        data.setup("fit")
    module = Watcher()
    trainer(tmp_path, fast_dev_run=1).fit(module, data)
    assert (data.img_size, data.in_chans) == (16, 3)
    assert len(module.batches) == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"augmentation": {"gray": 0.0}, "in_chans": 3},
            r"`augmentation.jitter=\[0.4, 0.4, 0.2, 0.1\]`: changes colors, .*\(those of all datasets\)",
        ),
        (
            {"augmentation": GRAY | {"gray": 0.1}, "in_chans": 3},
            "`augmentation.gray=0.1`: changes .* set it to 0",
        ),
        ({"num_workers": 2}, "invalid `data.num_workers=2`: has no effect, all images are in memory; remove it."),
        ({"in_chans": 2}, r"invalid `in_chans=2`: must be 1 or 3, the channels of images \(encoder.in_chans\)"),
        ({"batch_size": 4096}, "invalid `data.batch_size=4096`: x 1 process.*at most 1438"),
    ],
)
def test_rejected_in_setup(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        digits(**kwargs).setup("fit")


def test_overfit_batches_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"invalid `trainer\.overfit_batches=2`: must be 0"):
        trainer(tmp_path, overfit_batches=2).fit(Watcher(), digits(img_size=16, in_chans=3))


def test_fraction_and_names():
    data = digits(
        datasets=[{"name": "digits", "fraction": 0.25}, {"name": "digits", "split": "test"}], sampling="concat"
    )
    data.setup("fit")
    assert data.names == ["digits-train", "digits-test"]
    assert data.share_drawn() == pytest.approx({"digits-train": 0.5, "digits-test": 0.5}, abs=0.01)


def test_temporary_roots_draw_one_warning(tmp_path):
    root = "/tmp/somewhere"
    data = MultiDatasetDataModule([{"name": "folder", "root": root}], probe=[{"name": "folder", "root": root}])
    with pytest.warns(
        UserWarning, match="the data of folder is in /tmp/somewhere, a folder for temporary files"
    ) as caught:
        data.prepare_data()
    assert len(caught) == 1


def test_a_probe_without_labels_is_refused(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / split / "x.png")
    data = digits(probe=[{"name": "folder", "root": str(tmp_path)}])
    with pytest.raises(ConfigError, match="The probe folder has images without a label"):
        data.setup("fit")


class Oblong(Watcher):
    img_size = (8, 24)

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3 * 8 * 24, 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_are_not_square_from_files_and_memory(tmp_path, workers):
    root = photographs(tmp_path / "data")
    sets = [{"name": "fake"}, {"name": "folder", "root": root}, {"name": "digits"}]
    data = MultiDatasetDataModule(
        sets, batch_size=8, epoch_size=32, views=2, probe=[{"name": "folder", "root": root}, {"name": "digits"}],
        num_workers=workers,
    )  # fmt: skip
    module = Oblong()
    trainer(tmp_path).fit(module, data)
    assert data.img_size == (8, 24)
    assert all(v.shape == (8, 3, 8, 24) and v.isfinite().all() for b in module.batches for v in b.views)
    assert {tuple(b.image.shape[1:]) for _, b in module.clean} == {(3, 8, 24)}
    assert {int(s) for b in module.batches for s in b.source} == {0, 1, 2}


def test_a_size_given_to_both_is_the_same_as_a_list_or_refused(tmp_path):
    trainer(tmp_path, fast_dev_run=1).fit(Oblong(), digits(img_size=[8, 24], in_chans=3))
    with pytest.raises(ConfigError, match=r"invalid `data.img_size=\[24, 8\]`: must be the encoder's \[8, 24\]"):
        trainer(tmp_path, fast_dev_run=1).fit(Oblong(), digits(img_size=[24, 8], in_chans=3))


@pytest.mark.parametrize("size", [(8,), (8, 8, 8), (8, 1), 1, "8", (8, 9.5), True])
def test_what_is_no_size_is_refused(size):
    sentence = r"`data.img_size=.*`: must be a whole number >= 2, a list of 2 whole numbers >= 2 or null"
    with pytest.raises(ConfigError, match=sentence):
        digits(img_size=size)


def test_an_error_leaves_no_part_of_a_mixture_behind(tmp_path) -> None:
    """As in a notebook, where the cell is run again once the folder is there."""
    data = MultiDatasetDataModule(
        [{"name": "digits"}, {"name": "folder", "root": str(tmp_path / "later")}],
        batch_size=8, img_size=8, in_chans=1, augmentation="none",
    )  # fmt: skip
    for _ in range(2):
        with pytest.raises(ConfigError, match="later"):
            data.setup("fit")
    (tmp_path / "later").mkdir()
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "later" / "0.png")
    data.setup("fit")
    assert [len(images) for images in data.sets.train] == [1797 * 4 // 5 + 1, 1]
