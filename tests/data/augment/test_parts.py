"""Registry of augmentation parts, and parts outside the package."""

import sys

import pytest
import torch
import yaml

from hjepa_pl.__main__ import main
from hjepa_pl.data import PARTS, AugmentationConfig, MultiDatasetDataModule, Part
from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.presets import CLEAN
from hjepa_pl.functional.counters import Stream
from hjepa_pl.types import ConfigError, Counters
from tests.cli.test_cli import TINY

OWN_PART = '''
from hjepa_pl.data import Part
from hjepa_pl.utils.settings import Fraction, settings


@settings("augmentation.extra.own_part.Invert")
class Invert(Part):
    """Inverts some images."""

    invert: Fraction = 0.0
    before_crop = True

    @property
    def numbers(self):
        return {200: 1}

    def __call__(self, images, draws, info):
        chosen = (draws[200] < self.invert)[:, :, None, None]
        return (1 - images) * chosen + images * ~chosen


@settings("augmentation.extra.own_part.Shift")
class Shift(Invert):
    """Moves content, with the random stream of `Invert`."""

    moves = True


class Taken(Invert):
    """Uses a stream of the package."""

    @property
    def numbers(self):
        return {3: 1}
'''


@pytest.fixture
def own_part(tmp_path, monkeypatch):
    (tmp_path / "own_part.py").write_text(OWN_PART)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_part", None)


@pytest.fixture
def registered(own_part, monkeypatch):
    """Register the part for a test."""
    monkeypatch.setattr(PARTS, "_parts", dict(PARTS))
    PARTS["invert"] = PARTS.find("own_part.Invert")


def view(size=16, **keys):
    """Return 32 views of one image, not cropped unless the keys ask for it."""
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).expand(32, -1, -1, -1)
    config = AugmentationConfig(**({"preset": "none"} | keys))
    augmenter = Augmenter(config, size, (0.0,) * 3, (1.0,) * 3, seed=5)
    return augmenter.view(image.contiguous(), Counters(0, 0, torch.arange(32)), 0)


@pytest.mark.parametrize("value", [1.0, {"invert": 1.0}])
def test_a_part_outside_the_package_changes_the_views(own_part, value) -> None:
    assert torch.equal(view(extra={"own_part.Invert": value}), 1 - view())


def test_its_random_numbers_are_its_own(own_part) -> None:
    plain, some = view(flip=0.5), view(flip=0.5, extra={"own_part.Invert": 0.5})
    inverted = (some == 1 - plain).all(3).all(2).all(1)
    assert ((some == plain).all(3).all(2).all(1) | inverted).all()
    assert 4 < int(inverted.sum()) < 28


@pytest.mark.parametrize("size", [8, 32])  # smaller and larger than the image: after and before the crop
def test_it_runs_where_it_says(own_part, size) -> None:
    crop = {"crop_scale": (0.5, 1.0)}
    inverted = view(size, **crop, extra={"own_part.Invert": 1.0})
    torch.testing.assert_close(inverted, 1 - view(size, **crop), atol=1e-5, rtol=0)


def test_the_registry_lists_it_and_takes_its_name(registered) -> None:
    assert "invert" in PARTS
    assert torch.equal(view(extra={"invert": 1.0}), 1 - view())
    with pytest.raises(ConfigError, match=r"invalid `augmentation.extra=invrt`: must be .*; did you mean invert\?$"):
        AugmentationConfig(extra={"invrt": 1.0})


def test_it_makes_views_differ(own_part) -> None:
    with pytest.raises(ConfigError, match="all views would be the same"):
        MultiDatasetDataModule(["fake"], views=2, augmentation="none")
    extra = {"own_part.Invert": 0.5}
    data = MultiDatasetDataModule(["fake"], views=2, augmentation={"preset": "none", "extra": extra})
    assert data.settings()["augmentation"]["extra"] == extra  # stored, and compared on resume


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"own_part.Invert": 2}, "invalid `augmentation.extra.own_part.Invert.invert=2`: must be a number in [0, 1]."),
        ({"own_part.Invert": 0}, "invalid `augmentation.extra.own_part.Invert=0`: has no effect; remove it."),
        (
            {"own_part.Invert": {"often": 1}},
            "augmentation.extra.own_part.Invert does not accept 'often'; its keys are invert.",
        ),
        (
            {"own_part.Invert": 0.5, "own_part.Shift": 0.5},
            "invalid `augmentation.extra.own_part.Shift`: uses the random stream 200 of own_part.Invert; use another "
            "number from 128 to 255.",
        ),
        (
            {"own_part.Taken": 0.5},
            "invalid `augmentation.extra.own_part.Taken`: uses the random stream 3; use a number from 128 to 255.",
        ),
        ({"gray": 0.5}, "invalid `augmentation.extra.gray=0.5`: is set by a key of its own; use augmentation.gray."),
        (
            {"math.pi": 1},
            "invalid `augmentation.extra.math.pi=1`: must be the import path of a subclass of hjepa_pl.data.Part.",
        ),
    ],
)
def test_rejected_parts(own_part, extra, sentence) -> None:
    with pytest.raises(ConfigError) as error:
        AugmentationConfig(extra=extra)
    assert str(error.value) == sentence


def test_a_part_that_moves_content_is_named(own_part) -> None:
    config = AugmentationConfig(extra={"own_part.Shift": 0.5}, rotate=10, mixup=0.8)
    assert config.moving_keys == {"rotate": 10, "extra.own_part.Shift": 0.5, "mixup": 0.8}


def test_a_run_from_yaml_trains_with_it(own_part, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hjepa"])
    tree = yaml.safe_load(yaml.safe_dump(TINY))
    tree["data"]["init_args"]["augmentation"] |= {"extra": {"own_part.Invert": 0.5}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    assert main(["fit", "--config", "own.yaml"]) == 0
    checkpoint = torch.load(tmp_path / "results/tiny/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["hjepa_data"]["augmentation"]["extra"] == {"own_part.Invert": 0.5}
    assert main(["fit", "--config", "results/tiny/config.yaml", "--ckpt_path=last", "--trainer.max_epochs=2"]) == 0


def test_every_part_says_what_it_is() -> None:
    """Clean values of all parts are those of `none`, and no two parts share keys or random streams."""
    keys = [key for part in PARTS.values() for key in part.clean()]
    assert len(keys) == len(set(keys))
    assert set(keys) | {"crop_scale", "crop_ratio", "flip", "mixup", "cutmix"} == set(CLEAN) | {
        "rand_magnitude", "erase_scale", "erase_ratio",
    }  # fmt: skip
    full = AugmentationConfig(preset="deit3", gray=0.1, solarize=0.1, blur=0.1, rotate=1, rand_augment=1, erase=0.1)
    assert {type(part) for part in full.parts} == set(PARTS.values())
    streams = [stream for part in full.parts for stream in part.numbers]
    assert len(streams) == len(set(streams))
    assert all(isinstance(stream, Stream) for stream in streams)
    assert all(issubclass(part, Part) and not part().on for part in PARTS.values())
