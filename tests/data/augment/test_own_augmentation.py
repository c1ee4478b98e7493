"""A dataset's own augmentation: it acts on that set's images, on all of their views, and on nothing else."""

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
def test_a_sets_images_are_as_if_all_were_augmented_so_and_the_others_as_before(sets, own, crops):
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


def test_naming_the_default_again_changes_nothing_and_costs_nothing(sets):
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
        assert len(batch.groups) == 4  # memory: two ways; files: two ways
        assert torch.equal(torch.cat([g.rows for g in batch.groups]).sort().values, torch.arange(32))
        turned = view_batch(batch._replace(groups=batch.groups[::-1]), data._feed.views, 3)
        assert all(torch.equal(a, b) for a, b in zip(turned.views, made.views, strict=True))


def test_workers_and_mixing_treat_own_augmentations_alike(sets):
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


def test_an_own_augmentation_of_grey_images_draws_from_what_acts_on_them():
    grey = {"gray": 0, "jitter": (0.4, 0.4, 0, 0), "rand_augment": 2}
    mixture = [{"name": "digits"}, {"name": "fake"}]
    data = drawn(mixture, {0: grey}, img_size=8)[0]
    alone = drawn(mixture[:1], augmentation=grey, img_size=8)[0]
    assert [m.views.colourless for m in data._feed.views.makers] == [False, True]
    assert [m.views.colourless for m in alone._feed.views.makers] == [True]


REFUSED = {
    "word": ({"augmentation": "foo"}, r"`datasets.augmentation \(of fake\)=foo` is not a preset: use one of small"),
    "type": ({"augmentation": 3}, r"datasets\[0\].augmentation must be text or a mapping or null, got 3"),
    "part": ({"augmentation": {"flop": 1}}, r"datasets.augmentation \(of fake\) does not accept 'flop'"),
    "range": ({"augmentation": {"flip": 2}}, r"`datasets.augmentation \(of fake\).flip=2.0` is refused: give a number"),
    "idle": (
        {"augmentation": {"rand_magnitude": 3}},
        r"`datasets.augmentation \(of fake\).rand_magnitude=3` does",
    ),
    "clean": ({"augmentation": "none"}, r"`datasets.augmentation \(of fake\)` makes the clean image of every view"),
    "mixup": (
        {"augmentation": "deit3"},
        r"`datasets.augmentation \(of fake\).mixup=0.8` is refused, .*: set it to 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_by_key_and_set(name):
    given, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        MultiDatasetDataModule([{"name": "fake", **given}, {"name": "digits"}], views=2)


def test_an_augmentation_that_mixes_holds_for_all_sets():
    with pytest.raises(ConfigError, match=r"cutmix|mixup=0` is refused.*: set it to 0.8, as augmentation.mixup is"):
        MultiDatasetDataModule([{"name": "fake", "augmentation": "jepa"}, {"name": "digits"}], augmentation="deit3")
    own = {"preset": "jepa", "mixup": 0.8, "cutmix": 1}
    MultiDatasetDataModule([{"name": "fake", "augmentation": own}, {"name": "digits"}], augmentation="deit3")


def test_an_augmentation_that_no_set_uses_is_refused():
    sets = [{"name": "fake", "augmentation": "jepa"}, {"name": "digits", "augmentation": {"gray": 0}}]
    MultiDatasetDataModule(sets)
    MultiDatasetDataModule(sets, augmentation="jepa")
    with pytest.raises(ConfigError, match="`augmentation` would do nothing where every dataset has its own"):
        MultiDatasetDataModule(sets, augmentation="simclr")


def test_colours_of_a_grey_set_are_refused():
    with pytest.raises(ConfigError, match=r"`datasets.augmentation \(of digits\).jitter \(saturation\)=0.8` would do"):
        drawn([{"name": "fake"}, {"name": "digits"}], {1: "simclr"})
    gray = {"gray": 0, "jitter": (0.4, 0.4, 0, 0)}
    with pytest.raises(
        ConfigError, match=r"`datasets.augmentation \(of fake\).jitter \(saturation\)=0.2` .*in_chans=1"
    ):
        drawn([{"name": "fake"}, {"name": "digits"}], {0: {"solarize": 0.2}}, in_chans=1, augmentation=gray)


def test_what_moves_the_content_of_crops_that_are_placed_is_refused():
    module = HJEPALightningModule(
        encoder=TINY, levels=[{"cell": 1}, {"cell": "image"}], masks={"strategy": "global_with_local_context"}
    )
    sets = [{"name": "fake"}, {"name": "digits", "augmentation": {"rotate": 10}}]
    data = MultiDatasetDataModule(sets, views=2, multicrop=CROPS)
    with pytest.raises(ConfigError, match=r"`datasets.augmentation.rotate=10`: moves content .* \(dataset digits\)"):
        check_data(data, module, 1)
