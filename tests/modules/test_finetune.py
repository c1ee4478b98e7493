"""Fine-tuning on real digits: the encoder learns, each option acts, and checkpoints load."""

import dataclasses

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader, TensorDataset

from hjepa_pl.backbones import load_encoder
from hjepa_pl.data.sources.registry import load_dataset
from hjepa_pl.modules.finetune import FinetuneConfig, HJEPAFinetuneModule
from hjepa_pl.types import ConfigError

ENCODER = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 8, "patch_size": 2, "in_chans": 1}
MEAN, STD = (0.5,), (0.25,)


def loader(split: str, batch_size: int = 64) -> DataLoader:
    digits = load_dataset("digits", None, split)
    images = (digits.images.float() / 255 - 0.5) / 0.25
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(images, digits.labels), batch_size, shuffle=split == "train", generator=generator)


def train(module: HJEPAFinetuneModule, epochs: int = 1, **settings) -> pl.Trainer:
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip
    trainer.fit(module, loader("train"), loader("test"))
    return trainer


def make(**options) -> HJEPAFinetuneModule:
    torch.manual_seed(1)
    return HJEPAFinetuneModule(num_classes=10, encoder=ENCODER, mean=MEAN, std=STD, **options)


def test_the_encoder_learns_and_its_checkpoint_loads_in_both_ways(tmp_path) -> None:
    module = make(label_smoothing=0.0, drop_path_rate=0.0, layer_decay=1.0, lr=1e-2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = train(module, epochs=6)
    moved = [name for name, value in module.named_parameters() if not torch.equal(value, before[name])]
    assert {name for name, value in module.named_parameters() if value.requires_grad} == set(moved)
    assert trainer.callback_metrics["val/accuracy"] > 50
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")

    images = next(iter(loader("test")))[0]
    again = HJEPAFinetuneModule.load_from_checkpoint(tmp_path / "tuned.ckpt").eval()
    module.eval()
    assert torch.equal(again(images), module(images))
    backbone = load_encoder(tmp_path / "tuned.ckpt")
    assert (backbone.mean, backbone.std) == (MEAN, STD)
    assert torch.equal(module.head(backbone(images)), module(images))
    tuned = HJEPAFinetuneModule(backbone, num_classes=3)
    assert torch.equal(tuned.eval().context_encoder(images)["last"], module.context_encoder(images)["last"])


def test_the_head_starts_as_the_linear_probe() -> None:
    module = make().eval()
    digits = load_dataset("digits", None, "train")
    images = (digits.images.float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        features = module.context_encoder(images)["last"].mean(dim=1)
        before = (module(images).argmax(1) == digits.labels).double().mean()
        module.start_head(features, digits.labels)
        logits = module(images)
    scaler = StandardScaler().fit(features)
    theirs = LogisticRegression(C=1 / (1e-2 * len(images)), max_iter=3000, tol=1e-8)
    theirs.fit(scaler.transform(features), digits.labels)
    assert (logits.argmax(1) == digits.labels).double().mean() > before + 0.1
    expected = theirs.predict_proba(scaler.transform(features))
    assert np.allclose(logits.softmax(dim=1), expected, atol=1e-2)


def test_blocks_nearer_to_the_images_learn_slower() -> None:
    groups = make(layer_decay=0.5).parameter_groups()
    scales = sorted({group["lr_scale"] for group in groups}, reverse=True)
    assert scales == [0.5**i for i in range(5)]  # head, final norm and last block, two blocks, embedding
    assert {group["lr_scale"] for group in make(layer_decay=1.0).parameter_groups()} == {1.0}
    counted = sum(len(group["params"]) for group in groups)
    assert counted == sum(p.requires_grad for p in make().parameters())
    assert all(
        group["weight_decay"] == 0 for group in groups for p in group["params"] if p.ndim == 1 and p.numel() != 10
    )


def test_a_run_without_a_length_is_rejected() -> None:
    trainer = pl.Trainer(
        accelerator="cpu", max_time="00:00:00:03", max_epochs=-1, logger=False, enable_checkpointing=False
    )
    with pytest.raises(ConfigError, match="set max_epochs or max_steps of the Trainer"):
        trainer.fit(make(), loader("train"))


def test_rates_rise_and_fall_over_the_run() -> None:
    rates: list[float] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            rates.append(max(group["lr"] for group in trainer.optimizers[0].param_groups))

    train(make(lr=1.0e-3, warmup_fraction=0.25), epochs=1, callbacks=[Watch()], num_sanity_val_steps=0)
    assert max(rates) == pytest.approx(1e-3, rel=0.05)
    assert rates[-1] < 1e-4
    assert rates.index(max(rates)) == pytest.approx(len(rates) / 4, abs=2)


@pytest.mark.parametrize(
    "option",
    [
        {"lr": 1e-4}, {"layer_decay": 0.5}, {"weight_decay": 1.0}, {"warmup_fraction": 0.9}, {"drop_path_rate": 0.5},
        {"mixup": 0.8}, {"cutmix": 1.0}, {"label_smoothing": 0.5},
    ],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_every_option_changes_the_run(option) -> None:
    weights = []
    for options in ({}, option):
        module = make(**options)
        train(module, limit_train_batches=6, limit_val_batches=0)
        weights.append(torch.cat([p.flatten() for p in module.parameters()]))
    assert not torch.equal(*weights)


def test_every_option_is_in_that_table() -> None:
    names = {field.name for field in dataclasses.fields(FinetuneConfig)}
    marks = test_every_option_changes_the_run.pytestmark[0].args[1]
    assert names == {name for option in marks for name in option}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_classes": 1}, "invalid `num_classes=1`: must be a whole number >= 2."),
        ({"num_classes": 3, "encoder": None}, "needs either a backbone"),
        ({"num_classes": 3, "branch": "online"}, "invalid `branch=online`: has an effect only with the path"),
        ({"num_classes": 3, "lr": 0.0}, "invalid `finetune.lr=0`: must be a number > 0"),
        ({"num_classes": 3, "learning_rate": 0.1}, "finetune does not accept 'learning_rate'"),
    ],
)
def test_what_is_refused(arguments, sentence) -> None:
    with pytest.raises(ConfigError) as error:
        HJEPAFinetuneModule(**({"encoder": ENCODER} | arguments))
    assert sentence in str(error.value)
