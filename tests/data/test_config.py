import pytest

from hjepa_pl.data import AugmentationConfig, DatasetConfig, MultiDatasetDataModule, ProbeConfig
from hjepa_pl.types import ConfigError

NAN = float("nan")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"crop_scale": (1.0, 0.2)}, r"`augmentation.crop_scale=\[1, 0.2\]`: .*; the smaller one first."),
        ({"crop_scale": (0.0, 1.0)}, r"a list of 2 numbers in \(0, 1\]"),
        ({"crop_scale": (NAN, 1.0)}, "augmentation.crop_scale"),
        ({"crop_scale": 0.5}, "`augmentation.crop_scale=0.5`: must be a list of 2"),
        ({"crop_ratio": (-1, 1)}, "augmentation.crop_ratio"),
        ({"flip": 1.5}, r"invalid `augmentation.flip=1.5`: must be a number in \[0, 1\]."),
        ({"flip": NAN}, "augmentation.flip"),
        ({"flip": "often"}, "invalid `augmentation.flip=often`: must be a number"),
        ({"jitter": (0.1, 0.1)}, "; strengths of brightness, contrast, saturation and hue."),
        ({"jitter": (0.1, 0.1, 0.1, 0.9)}, r"`augmentation.jitter=\[0.1, 0.1, 0.1, 0.9\]`: .* a number in \[0, 0.5\]"),
        ({"jitter_prob": -1}, "augmentation.jitter_prob"),
        ({"blur": 2}, "augmentation.blur"),
        ({"rotate": 400}, "augmentation.rotate"),
        ({"translate": 1.0}, "augmentation.translate"),
    ],
)
def test_rejected_augmentations(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        AugmentationConfig(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"datasets": []}, r"invalid `datasets=\[\]`: must be a list of at least one dataset."),
        ({"datasets": 3}, "invalid `datasets=3`: must be a list."),
        ({"datasets": [3]}, "invalid `datasets=3`: must be a mapping of name, weight"),
        ({"datasets": [{"nam": "digits"}]}, "does not accept 'nam'; its keys are name, weight"),
        ({"datasets": [{"weight": 1.0}]}, "lacks the key 'name'"),
        ({"datasets": [{"name": "mnist"}]}, "invalid `datasets.name=mnist`: must be digits, digits_canvas"),
        (
            {"datasets": [{"name": "digits", "root": "x"}]},
            "invalid `datasets.root=x`: has no effect with name=digits, which needs no files; remove it",
        ),
        ({"datasets": [{"name": "folder"}]}, "invalid `datasets.root=null`: must be the folder that holds the images"),
        ({"datasets": [{"name": "digits", "weight": 0}]}, r"`datasets.weight=0`: must be a number > 0 \(dataset"),
        ({"datasets": [{"name": "digits", "weight": NAN}]}, r"`datasets.weight=nan`: must be a number > 0 \(dataset"),
        ({"datasets": [{"name": "digits", "fraction": 0}]}, r"`datasets.fraction=0`: must be a number in \(0, 1\] \("),
        ({"datasets": [{"name": "digits"}] * 2}, "`datasets`: contains digits, split=train twice; remove"),
        ({"batch_size": 1}, "`data.batch_size=1`: must be a whole number >= 2; batch statistics need two images."),
        ({"batch_size": 2.5}, "invalid `data.batch_size=2.5`: must be a whole number >= 2"),
        ({"views": 0}, "invalid `data.views=0`: must be a whole number >= 1."),
        ({"epoch_size": 0}, "invalid `data.epoch_size=0`: must be a whole number >= 1 or null."),
        ({"num_workers": -1}, "invalid `data.num_workers=-1`: must be a whole number >= 0 or null."),
        ({"sampling": "odd"}, "invalid `data.sampling=odd`: must be weighted, balanced, concat or temperature."),
        ({"temperature": 1.0}, "invalid `data.temperature=1`: has no effect with sampling=weighted"),
        ({"std": (0.0, 1.0, 1.0)}, r"invalid `data.std=\[0, 1, 1\]`: must be a list of numbers > 0 or null."),
        ({"mean": (0.5,), "in_chans": 3}, r"invalid `data.mean=\[0.5\]`: must be 3 number\(s\), one per channel"),
        ({"augmentation": {"flop": 1}}, "augmentation does not accept 'flop'"),
        ({"augmentation": {}, "in_chans": 1}, r"jitter=.*`: changes colors, but all images are gray \(in_chans=1\)"),
        ({"probe": [{"name": "digits", "max_train": 0}]}, "invalid `probe.max_train=0`: must be a whole number >= 2"),
        ({"probe": [{"name": "digits"}] * 2}, "invalid `probe`: contains digits twice; remove one"),
    ],
)
def test_rejected_arguments(kwargs, message):
    with pytest.raises(ConfigError, match=message) as caught:
        MultiDatasetDataModule(**({"datasets": [{"name": "digits"}]} | kwargs))
    assert "\n" not in str(caught.value)


def test_configs_and_mappings_are_the_same():
    a = MultiDatasetDataModule([DatasetConfig(name="digits")], probe=[ProbeConfig(name="digits")])
    b = MultiDatasetDataModule([{"name": "digits"}], probe=[{"name": "digits"}], augmentation={})
    assert a.settings() == b.settings()
    assert a.datasets == b.datasets
    assert not a.hparams
