import pytest

from hjepa_pl.data import AugmentationConfig, DatasetConfig, MultiDatasetDataModule, ProbeConfig
from hjepa_pl.types import ConfigError

NAN = float("nan")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"crop_scale": (1.0, 0.2)}, "give the smaller number first"),
        ({"crop_scale": (0.0, 1.0)}, "above 0 and at most 1"),
        ({"crop_scale": (NAN, 1.0)}, "augmentation.crop_scale"),
        ({"crop_scale": 0.5}, "give two numbers"),
        ({"crop_ratio": (-1, 1)}, "augmentation.crop_ratio"),
        ({"flip": 1.5}, "`augmentation.flip=1.5` is refused"),
        ({"flip": NAN}, "augmentation.flip"),
        ({"flip": "often"}, "augmentation.flip='often'"),
        ({"jitter": (0.1, 0.1)}, "give four numbers"),
        ({"jitter": (0.1, 0.1, 0.1, 0.9)}, r"augmentation.jitter \(hue\)=0.9"),
        ({"jitter_prob": -1}, "augmentation.jitter_prob"),
        ({"blur": 2}, "augmentation.blur"),
        ({"rotate": 400}, "augmentation.rotate"),
        ({"translate": 1.0}, "augmentation.translate"),
    ],
)
def test_augmentation_refusals(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        AugmentationConfig(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"datasets": []}, r"`datasets=\[\]` is refused"),
        ({"datasets": 3}, "datasets must be a list, got 3"),
        ({"datasets": [3]}, "must be a DatasetConfig or a mapping of its fields, got 3"),
        ({"datasets": [{"nam": "digits"}]}, "does not accept 'nam'; its keys are name, weight"),
        ({"datasets": [{"weight": 1.0}]}, "lacks the key 'name'"),
        ({"datasets": [{"name": "mnist"}]}, "invalid `datasets.name=mnist`: must be digits, digits_canvas"),
        (
            {"datasets": [{"name": "digits", "root": "x"}]},
            "invalid `datasets.root=x`: has no effect with name=digits, which needs no files; remove it",
        ),
        ({"datasets": [{"name": "folder"}]}, "invalid `datasets.root=null`: must be the folder that holds the images"),
        ({"datasets": [{"name": "digits", "weight": 0}]}, "give a number above 0"),
        ({"datasets": [{"name": "digits", "weight": NAN}]}, "give a number above 0"),
        ({"datasets": [{"name": "digits", "fraction": 0}]}, r"datasets.fraction \(of digits\)=0"),
        ({"datasets": [{"name": "digits"}] * 2}, "names digits, root=None, split=train twice"),
        ({"batch_size": 1}, "batch statistics need at least two images"),
        ({"batch_size": 2.5}, "`batch_size=2.5` is refused: give a whole number"),
        ({"views": 0}, "`views=0`"),
        ({"epoch_size": 0}, "`epoch_size=0`"),
        ({"num_workers": -1}, "`num_workers=-1`"),
        ({"sampling": "odd"}, "invalid `sampling=odd`"),
        ({"temperature": 1.0}, "invalid `temperature=1`: has no effect with sampling=weighted"),
        ({"std": (0.0, 1.0, 1.0)}, "`std=0.0` is refused"),
        ({"mean": (0.5,), "in_chans": 3}, r"does not fit 3 channel\(s\)"),
        ({"augmentation": {"flop": 1}}, "augmentation does not accept 'flop'"),
        ({"augmentation": {}, "in_chans": 1}, "would do nothing to images without colour"),
        ({"probe": [{"name": "digits", "max_train": 0}]}, "probe.max_train"),
        ({"probe": [{"name": "digits"}] * 2}, "`probe` names digits twice"),
    ],
)
def test_datamodule_refusals(kwargs, message):
    with pytest.raises(ConfigError, match=message) as caught:
        MultiDatasetDataModule(**({"datasets": [{"name": "digits"}]} | kwargs))
    assert "\n" not in str(caught.value)


def test_records_and_dicts_are_the_same():
    a = MultiDatasetDataModule([DatasetConfig(name="digits")], probe=[ProbeConfig(name="digits")])
    b = MultiDatasetDataModule([{"name": "digits"}], probe=[{"name": "digits"}], augmentation={})
    assert a.settings() == b.settings()
    assert a.datasets == b.datasets
    assert not a.hparams
