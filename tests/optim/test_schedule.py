"""Learning rates of real runs: warm-up, stable phase and cool-down; scaling with the batch; resumes."""

import math
import warnings

import lightning.pytorch as pl
import pytest

from hjepa_pl.modules.schedule import Schedule
from hjepa_pl.optim.config import OptimizerConfig
from hjepa_pl.optim.schedules import warmup_stable_decay
from hjepa_pl.types import ConfigError
from tests.modules.test_training import make_data, make_module, make_trainer

WSD = {"schedule": "wsd", "warmup_steps": 2, "lr": 1e-3}


class Rates(pl.Callback):
    """The learning rate of each optimizer step; writes a checkpoint after some of them."""

    def __init__(self, folder=None, saved: tuple[int, ...] = ()) -> None:
        self.folder, self.saved = folder, saved
        self.found: list[float] = []
        self.step = 0

    def on_train_start(self, trainer, module) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer, *args) -> None:
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            rates = {group["lr"] for group in trainer.optimizers[0].param_groups}
            assert len(rates) == 1
            self.found.append(rates.pop())
            if trainer.global_step in self.saved:
                trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def rates(tmp_path, optimizer, *, saved=(), ckpt_path=None, batch_size=16, **trainer) -> list[float]:
    """Return the learning rates of a run of 8 batches an epoch."""
    watch = Rates(tmp_path, saved)
    make_trainer(tmp_path, callbacks=[watch], **trainer).fit(
        make_module(optimizer=optimizer), make_data(batch_size=batch_size, epoch_size=8 * batch_size),
        ckpt_path=ckpt_path, weights_only=True,
    )  # fmt: skip
    return watch.found


def one_minus_sqrt(steps: int, cooldown: int, peak: float, floor: float, warmup: int = 2) -> list[float]:
    """The rates as arXiv:2405.18392 has them, by steps."""
    found = []
    for n in range(1, steps + 1):
        cooled = max(0, n - (steps - cooldown)) / cooldown if cooldown else 0.0
        found.append(peak * n / warmup if n < warmup else floor + (peak - floor) * (1 - math.sqrt(cooled)))
    return found


@pytest.mark.parametrize(("fraction", "cooldown"), [(None, 3.2), (0.5, 8), (0, 0)])
def test_wsd_is_constant_and_then_falls_as_one_minus_sqrt(tmp_path, fraction, cooldown) -> None:
    optimizer = WSD | ({} if fraction is None else {"cooldown_fraction": fraction})
    found = rates(tmp_path, optimizer, max_epochs=2)
    assert found == pytest.approx(one_minus_sqrt(16, cooldown, 1e-3, 1e-6), rel=1e-9)
    assert found[-1] == pytest.approx(1e-6 if cooldown else 1e-3)
    assert found[2] == found[7] == 1e-3


def test_the_cooldown_meets_both_its_ends() -> None:
    for cooldown in (0.01, 0.1, 0.2, 0.3, 0.7, 0.95):
        at = [warmup_stable_decay(1.0, 0.0, 0.05, cooldown, p) for p in (0.025, 0.05, 1.0 - cooldown, 1.0)]
        assert at == pytest.approx([0.5, 1.0, 1.0, 0.0], abs=1e-6)
        assert min(at) >= 0.0


def test_wsd_ends_cool_within_a_time_budget(tmp_path) -> None:
    watch = Rates()
    module = make_module(optimizer={"schedule": "wsd", "lr": 1e-3, "min_lr": 1e-6}, time_budget="00:00:05")
    trainer = make_trainer(tmp_path, max_epochs=-1, callbacks=[watch], check_val_every_n_epoch=1000)
    trainer.fit(module, make_data())
    assert watch.found[-1] == pytest.approx(1e-6)
    constant = sum(rate == 1e-3 for rate in watch.found) / len(watch.found)
    assert 0.55 < constant < 0.9  # 0.75 of the time


def test_a_longer_limit_goes_on_at_the_constant_rate(tmp_path) -> None:
    """From a checkpoint before the cool-down, as if the longer run had been started at once."""
    rates(tmp_path, WSD, max_epochs=2, saved=(11, 15))
    whole = rates(tmp_path, WSD, max_epochs=4)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cool-down.*")
        resumed = rates(tmp_path, WSD, max_epochs=4, ckpt_path=tmp_path / "11.ckpt")
    assert resumed == whole[11:]
    assert resumed[0] == 1e-3
    with pytest.warns(
        UserWarning, match=r"cool-down of a shorter run: its learning rate is 0\.000172 and returns to 0\.001"
    ):
        rates(tmp_path, WSD, max_epochs=4, ckpt_path=tmp_path / "15.ckpt")


def test_a_cooldown_is_appended_to_a_finished_run(tmp_path) -> None:
    constant = rates(tmp_path, WSD | {"cooldown_fraction": 0}, max_epochs=2, saved=(16,))
    cooled = rates(tmp_path, WSD | {"cooldown_fraction": 1 / 3}, max_epochs=3, ckpt_path=tmp_path / "16.ckpt")
    assert constant[2:] == [1e-3] * 14
    assert cooled == pytest.approx(one_minus_sqrt(24, 8, 1e-3, 1e-6)[16:], rel=1e-6)


@pytest.mark.parametrize(("scale", "factor"), [("none", 1.0), ("sqrt", (32 / 256) ** 0.5), ("linear", 32 / 256)])
def test_the_learning_rate_follows_batch_and_accumulation(tmp_path, scale, factor) -> None:
    keys = {"lr": 1e-3, "warmup_steps": 2, "lr_scale": scale}
    found = rates(tmp_path, keys, max_epochs=2, accumulate_grad_batches=2)  # 8 steps of 32 images
    assert max(found) == pytest.approx(1e-3 * factor)
    assert found[-1] == pytest.approx(1e-6 * factor)  # min_lr_ratio is of the scaled peak
    absolute = rates(tmp_path, keys | {"min_lr": 2e-5}, max_epochs=1, accumulate_grad_batches=2)
    assert absolute[-1] == pytest.approx(2e-5)


def test_the_learning_rate_follows_the_number_of_devices() -> None:
    schedule = Schedule(OptimizerConfig(lr=1e-3, lr_scale="linear"))
    schedule.scale(64 * 8 * 2)
    assert schedule.learning_rate(schedule.warmup) == pytest.approx(4e-3)


class Foreign(pl.LightningDataModule):
    """A data module without a batch size, which must not be read."""

    def prepare_data(self) -> None:
        raise AssertionError("data was read")


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (
            {"cooldown_fraction": 0.1},
            r"`optimizer.cooldown_fraction=0.1`: has no effect with optimizer.schedule=cosine",
        ),
        (WSD | {"cooldown_fraction": 1.0}, r"`optimizer.cooldown_fraction=1`: must be a number in \[0, 1\)"),
        (
            WSD | {"cooldown_fraction": 0, "min_lr": 0.0},
            r"`optimizer.min_lr=0`: has no effect with .*cooldown_fraction=0",
        ),
        (WSD | {"cooldown_fraction": 0, "min_lr_ratio": 0.1}, r"`optimizer.min_lr_ratio=0.1`: has no effect with"),
        ({"schedule": "step"}, r"invalid `optimizer.schedule=step`: must be cosine or wsd"),
        ({"kind": "sgd"}, r"invalid `optimizer.kind=sgd`: must be adamw or muon"),
        ({"lr_scale": "cubic"}, r"invalid `optimizer.lr_scale=cubic`: must be none, sqrt or linear"),
    ],
)
def test_keys_without_an_effect_are_rejected(optimizer, said) -> None:
    with pytest.raises(ConfigError, match=said):
        make_module(optimizer=optimizer)


def test_a_scale_that_cannot_act_or_hides_the_end_is_rejected_before_data_is_read(tmp_path) -> None:
    with pytest.raises(
        ConfigError, match=r"`optimizer.lr_scale=sqrt`: needs the batch size of a MultiDatasetDataModule"
    ):
        make_trainer(tmp_path).fit(make_module(optimizer={"lr_scale": "sqrt"}), Foreign())
    keys = {"lr": 1e-3, "min_lr": 5e-4, "lr_scale": "linear"}
    with pytest.raises(ConfigError, match=r"`optimizer.min_lr=0.0005`: must be <= .*lr_scale=linear to 6.25e-05"):
        rates(tmp_path, keys)
    assert rates(tmp_path, keys | {"min_lr": 5e-3}, batch_size=2048, max_steps=1, max_epochs=-1) == [5e-3]


def test_a_warmup_and_a_cooldown_longer_than_the_run_are_rejected(tmp_path) -> None:
    keys = {"schedule": "wsd", "warmup_steps": 6, "cooldown_fraction": 0.5}
    with pytest.raises(ConfigError, match=r"`optimizer.cooldown_fraction=0.5`: is 50% of the run, and the warm-up 75%"):
        rates(tmp_path, keys)
    assert len(rates(tmp_path, keys | {"cooldown_fraction": 0.25})) == 8
