"""Augmentation of a single dataset: it acts on all views of its images, and on no others."""

import pytest
import torch

from hjepa_pl import HJEPALightningModule
from hjepa_pl.data import AugmentationConfig, MultiDatasetDataModule
from hjepa_pl.data.loading.views import view_batch
from hjepa_pl.modules.check_data import check_data
from hjepa_pl.tools.make_shards import make_shards
from hjepa_pl.types import ConfigError
from tests.conftest import TINY
from tests.data.test_datamodule import photographs

OTHER = {"preset": "simclr", "flip": 0.9, "rotate": 20, "erase": 0.5}
CROPS = {"local_views": 2, "local_size": 8}
SETS = ["arrays", "arrays too", "files", "shards"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets in memory whose images are of one size, one of files and one of shards."""
    folder = tmp_path_factory.mktemp("sets")
    root = photographs(folder / "files")
    make_shards(f"{root}/train", str(folder / "shard-%d.tar"), 8)
    return [
        {"name": "fake"},
        {"name": "fake", "split": "test"},
        {"name": "folder", "root": root},
        {"name": "webdataset", "root": str(folder / "shard-{0..1}.tar"), "shuffle_buffer": 4},
    ]


def drawn(sets, own=None, **kwargs):
    """Return the first two batches, raw and finished, where `own` has, by number, the sets' own augmentations."""
    sets = [{**s, "augmentation": (own or {}).get(i)} for i, s in enumerate(sets)]
    given = {"batch_size": 32, "epoch_size": 64, "views": 2, "img_size": 16, "in_chans": 3, "num_workers": 0}
    data = MultiDatasetDataModule(sets, **(given | kwargs))
    data.setup("fit")
    raw = list(data.train_dataloader())
    return data, raw, [data.on_after_batch_transfer(b, 0) for b in raw]


def all_views(batch):
    return [*batch.views, *batch.local_views]


@pytest.mark.parametrize("own", range(4), ids=SETS)
@pytest.mark.parametrize("crops", [None, CROPS], ids=["views", "crops"])
def test_own_augmentation_changes_the_images_of_its_dataset_only(sets, own, crops):
    plain, mixed, changed = (
        drawn(sets, which, multicrop=crops, augmentation=default)[2]
        for which, default in ((None, "small"), ({own: OTHER}, "small"), (None, OTHER))
    )
    for before, now, wanted in zip(plain, mixed, changed, strict=True):
        its = now.source == own
        assert its.any()
        assert (~its).any()
        assert torch.equal(before.source, now.source)
        assert torch.equal(before.label, now.label)
        views = [all_views(b) for b in (before, now, wanted)]
        assert len(views[1]) == (4 if crops else 2)
        for x, y, z in zip(*views, strict=True):
            assert torch.equal(y[~its], x[~its])
            assert torch.equal(y[its], z[its])
            assert ((y - x)[its].abs().amax((1, 2, 3)) > 1e-3).all()
        if crops:
            assert torch.equal(now.boxes[:, ~its], before.boxes[:, ~its])
            assert torch.equal(now.boxes[:, its], wanted.boxes[:, its])
            high, wide = (now.boxes[2:, its][..., k + 2] - now.boxes[2:, its][..., k] for k in (0, 1))
            assert (high * wide).abs().max() < 0.31  # multicrop's share of the image


def test_repeating_the_default_changes_nothing_and_adds_no_group(sets):
    default = AugmentationConfig(preset="small")
    data, raw, batches = drawn(sets)
    again, raw_again, same = drawn(sets, {0: "small", 1: {"flip": 0.5}, 2: default, 3: {"preset": "small"}})
    assert [len(b.groups) for b in raw_again] == [len(b.groups) for b in raw] == [2, 2]  # memory, files
    for x, y in zip(batches, same, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(x.views, y.views, strict=True))
    assert again.settings() == data.settings()
    assert data.settings()["datasets"][0]["augmentation"] is None


def test_groups_are_few_and_their_order_does_not_matter(sets):
    data, raw, batches = drawn(sets, {0: OTHER, 2: OTHER, 3: "jepa"})
    for batch, made in zip(raw, batches, strict=True):
        assert len(batch.groups) == 4  # two augmentations each in memory and in files
        assert torch.equal(torch.cat([g.rows for g in batch.groups]).sort().values, torch.arange(32))
        reversed_order = view_batch(batch._replace(groups=batch.groups[::-1]), data._train_data.views, 3)
        assert all(torch.equal(a, b) for a, b in zip(reversed_order.views, made.views, strict=True))


def test_own_augmentations_with_workers_and_mixup(sets):
    """Batches by two workers are those of none, and Mixup acts on the finished batch."""
    own = {"datasets": sets[1:3], "own": {1: {**OTHER, "mixup": 0.8}}}
    mixing = {"augmentation": {"mixup": 0.8}}
    here, there = (drawn(own["datasets"], own["own"], **mixing, num_workers=n)[2] for n in (0, 2))
    alone = drawn(own["datasets"], {1: OTHER}, num_workers=0)[2]
    for a, b, pure in zip(here, there, alone, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))
        for mixed, one in zip(a.views, pure.views, strict=True):
            partner = one.view(16, 2, *one.shape[1:]).flip(1).flatten(0, 1)
            torch.testing.assert_close(mixed, torch.lerp(partner, one, float(a.mix.share[0])))


def test_an_own_augmentation_of_gray_images_leaves_out_color_operations():
    gray = {"gray": 0, "jitter": (0.4, 0.4, 0, 0), "rand_augment": 2}
    mixture = [{"name": "digits"}, {"name": "fake"}]
    data = drawn(mixture, {0: gray}, img_size=8)[0]
    alone = drawn(mixture[:1], augmentation=gray, img_size=8)[0]
    assert [a.views.images_are_gray for a in data._train_data.views.augmenters] == [False, True]
    assert [a.views.images_are_gray for a in alone._train_data.views.augmenters] == [True]


REJECTED = {
    "word": (
        {"augmentation": "foo"},
        r"^invalid `datasets.augmentation=foo`: must be small, jepa, simclr, .* \(dataset fake\).$",
    ),
    "type": (
        {"augmentation": 3},
        r"^invalid `datasets.augmentation=3`: must be text, a mapping or null \(dataset fake\).$",
    ),
    "part": (
        {"augmentation": {"flop": 1}},
        r"^datasets.augmentation does not accept 'flop'; its keys are .* \(dataset fake\).$",
    ),
    "range": (
        {"augmentation": {"flip": 2}},
        r"^invalid `datasets.augmentation.flip=2`: must be a number in \[0, 1\] \(dataset fake\).$",
    ),
    "idle": (
        {"augmentation": {"rand_magnitude": 3}},
        r"^invalid `datasets.augmentation.rand_magnitude=3`: has no effect .* \(dataset fake\).$",
    ),
    "clean": (
        {"augmentation": "none"},
        r"`data.views=2`: .* because datasets.augmentation makes the clean image .* \(dataset fake\).$",
    ),
    "mixup": (
        {"augmentation": "deit3"},
        r"^invalid `datasets.augmentation.mixup=0.8`: .*; set it to 0, as for all datasets \(dataset fake\).$",
    ),
}


@pytest.mark.parametrize("name", REJECTED)
def test_errors_name_key_and_dataset(name):
    given, message = REJECTED[name]
    with pytest.raises(ConfigError, match=message):
        MultiDatasetDataModule([{"name": "fake", **given}, {"name": "digits"}], views=2)


def test_mixup_must_be_the_same_for_all_datasets():
    with pytest.raises(ConfigError, match=r"`datasets.augmentation.mixup=0`: .*; set it to 0.8, as for all datasets"):
        MultiDatasetDataModule([{"name": "fake", "augmentation": "jepa"}, {"name": "digits"}], augmentation="deit3")
    own = {"preset": "jepa", "mixup": 0.8, "cutmix": 1}
    MultiDatasetDataModule([{"name": "fake", "augmentation": own}, {"name": "digits"}], augmentation="deit3")


def test_an_augmentation_that_no_dataset_uses_is_rejected():
    sets = [{"name": "fake", "augmentation": "jepa"}, {"name": "digits", "augmentation": {"gray": 0}}]
    MultiDatasetDataModule(sets)
    MultiDatasetDataModule(sets, augmentation="jepa")
    with pytest.raises(
        ConfigError,
        match="invalid `augmentation`: has no effect except for mixup and cutmix, because every dataset has its own",
    ):
        MultiDatasetDataModule(sets, augmentation="simclr")


def test_color_changes_of_a_gray_set_are_rejected():
    with pytest.raises(
        ConfigError,
        match=r"`datasets.augmentation.jitter=\[0.8, .*`: changes colors, .*those of digits.* \(dataset digits\).$",
    ):
        drawn([{"name": "fake"}, {"name": "digits"}], {1: "simclr"})
    gray = {"gray": 0, "jitter": (0.4, 0.4, 0, 0)}
    with pytest.raises(
        ConfigError, match=r"`datasets.augmentation.jitter=\[0.4, .*\(in_chans=1\).* \(dataset fake\).$"
    ):
        drawn([{"name": "fake"}, {"name": "digits"}], {0: {"solarize": 0.2}}, in_chans=1, augmentation=gray)


def test_parts_that_move_content_are_rejected_with_box_masks():
    module = HJEPALightningModule(
        encoder=TINY, levels=[{"cell": 1}, {"cell": "image"}], masks={"strategy": "global_with_local_context"}
    )
    sets = [{"name": "fake"}, {"name": "digits", "augmentation": {"rotate": 10}}]
    data = MultiDatasetDataModule(sets, views=2, multicrop=CROPS)
    with pytest.raises(ConfigError, match=r"`datasets.augmentation.rotate=10`: moves content .* \(dataset digits\)"):
        check_data(data, module, 1)
