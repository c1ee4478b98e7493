"""The clock of a time budget: real time, in runs of seconds, with a validation that takes a known one."""

import math
import re
import time

import lightning.pytorch as pl
import pytest
import torch

from hjepa_pl import HJEPALightningModule
from hjepa_pl.callbacks.budget_clock import BudgetClock, seconds_written
from hjepa_pl.optim.budget import RunProgress
from hjepa_pl.types import ConfigError
from tests.modules.test_training import make_data, make_module, make_trainer

BUDGET, PAUSE = 6.0, 0.6
OPTIMIZER = {"lr": 1e-3, "min_lr": 1e-6, "weight_decay_end": 0.3}


class Watch(pl.Callback):
    """Makes each validation take PAUSE, and notes the schedules of each step and what was validated when."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self.validated: list[int] = []

    def on_train_batch_end(self, trainer, module, *args) -> None:
        decay, _ = trainer.optimizers[0].param_groups
        self.steps.append((decay["lr"], decay["weight_decay"]))

    @property
    def shares(self) -> list[float]:
        """The share of the run that each step's weight decay speaks of, a cosine from 0.05 to 0.3."""
        return [math.acos(min(1.0, max(-1.0, 1 - 8 * (decay - 0.05)))) / math.pi for _, decay in self.steps]

    def on_validation_epoch_end(self, trainer, module) -> None:
        time.sleep(PAUSE)
        if not trainer.sanity_checking:
            self.validated.append(trainer.global_step)


def budgeted(tmp_path, watch, *callbacks, **trainer) -> tuple[pl.Trainer, pl.LightningModule, pl.LightningDataModule]:
    module = make_module(time_budget="00:00:06", optimizer=OPTIMIZER, ema={"momentum": 0.9, "momentum_end": 1.0})
    settings = {"max_epochs": -1, "callbacks": [watch, *callbacks], "num_sanity_val_steps": -1} | trainer
    return (
        make_trainer(tmp_path, use_distributed_sampler=False, **settings), module,
        make_data(probe=[{"name": "digits", "max_train": 32, "max_test": 32}]),
    )  # fmt: skip


@pytest.mark.parametrize(
    "trainer",
    [
        {},  # a validation an epoch, of which several would cross the bell
        {"check_val_every_n_epoch": 1000},  # none but the last
        {"check_val_every_n_epoch": None, "val_check_interval": 5, "accumulate_grad_batches": 2},
    ],
)
def test_a_run_ends_inside_its_budget_with_every_schedule_at_its_end(tmp_path, trainer) -> None:
    watch = Watch()
    run, module, data = budgeted(tmp_path, watch, **trainer)
    run.fit(module, data)
    assert watch.steps[-1] == (1e-6, 0.3)
    assert module.ema.momentum(1.0, module.progress.total_steps) == 1.0
    assert max(rate for rate, _ in watch.steps) > 1e-4  # the peak, or what a busy machine hits of it
    assert watch.validated[-1] == run.global_step
    assert run.limit_val_batches == 1.0
    # The last validation is as long as the one before. Beside 2 % there is a step, and what a busy core adds or takes.
    assert 0.9 * BUDGET < module.progress.seconds < BUDGET + 0.3
    if len(watch.validated) > 1:
        # At least one step lies between two validations: none began that had to be the last and was not.
        assert all(a < b for a, b in zip(watch.validated, watch.validated[1:], strict=False))


def test_schedules_begin_at_the_first_step_whatever_the_start_took(tmp_path) -> None:
    """And the average's horizon is a third of the steps that the clock allows, not of those of `max_epochs`."""
    moved: list[float] = []

    class Moves(HJEPALightningModule):
        def move_target(self, momentum) -> None:
            moved.append(momentum)
            super().move_target(momentum)

    watch = Watch()
    run, _, data = budgeted(tmp_path, watch, max_epochs=1000, num_sanity_val_steps=0, check_val_every_n_epoch=1000)
    module = make_module(Moves, time_budget="00:00:06", optimizer=OPTIMIZER, ema={"momentum": 0.9999})
    module.clock = {"started": time.monotonic() - 0.3 * BUDGET}
    run.fit(module, data)
    rates, shares = [rate for rate, _ in watch.steps], watch.shares
    assert 0 < rates[0] < 1e-5
    assert rates[1] < 5e-4
    assert shares == sorted(shares)
    early = [rate for rate, share in zip(rates, shares, strict=True) if share < 0.05]
    assert early == sorted(early)
    assert rates[-1] == 1e-6
    assert max(rates) > 7e-4
    assert len(moved) == run.global_step < 1000
    assert moved[-1] == pytest.approx(1 - 3 / run.global_step)
    assert 0.5 < (1 - moved[len(moved) // 2]) / (3 / run.global_step) < 2


def test_a_budget_too_short_for_a_warm_up_is_said_once(tmp_path) -> None:
    class Slow(pl.Callback):
        def on_train_batch_start(self, *args) -> None:
            time.sleep(0.1)

    run, module, data = budgeted(tmp_path, Watch(), Slow(), num_sanity_val_steps=0, check_val_every_n_epoch=1000)
    with pytest.warns(
        UserWarning, match=r"`time_budget=0:00:06` is too short for a warm-up: its 5.0% .* had \d opt"
    ) as w:
        run.fit(module, data)
    assert sum("too short for a warm-up" in str(x.message) for x in w) == 1


def test_a_killed_run_has_spent_what_came_after_its_checkpoint_too(tmp_path) -> None:
    class Killed(Exception):
        """Stands for SIGKILL: nothing is written after it."""

    class Kill(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "last.ckpt")
                saved.append(module.progress.seconds)
            if saved and module.progress.seconds > saved[0] + 1.5:
                raise Killed

    saved: list[float] = []
    (tmp_path / "logs").mkdir()
    before = Watch()
    run, module, data = budgeted(tmp_path, before, BudgetClock(str(tmp_path)), Kill(), check_val_every_n_epoch=1000)
    with pytest.raises(Killed):
        run.fit(module, data)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["hjepa_seconds"] <= saved[0]
    noted = seconds_written(tmp_path)
    assert noted > saved[0] + 0.3  # a note is at most a second old
    watch = Watch()
    run, again, data = budgeted(tmp_path, watch, BudgetClock(str(tmp_path)))
    again.clock = {"started": time.monotonic(), "spent": noted}
    run.fit(again, data, ckpt_path=tmp_path / "last.ckpt")
    assert again.progress.rehearsal > PAUSE  # the checkpoint's: a resumed run has no sanity check
    assert 0.9 * BUDGET < again.progress.seconds < BUDGET + 0.3
    assert time.monotonic() - again.progress.started < BUDGET + 0.3 - noted
    assert watch.steps[-1] == (1e-6, 0.3)
    # What was lost is none of the schedules': they go on where the checkpoint was.
    assert before.shares[3] < watch.shares[0] < before.shares[3] + 0.001
    assert watch.shares == sorted(watch.shares)
    assert seconds_written(tmp_path) == pytest.approx(again.progress.seconds, abs=0.5)


def test_the_larger_share_counts_and_the_last_step_is_known_before_it_runs() -> None:
    clock = RunProgress(10, 1000.0, spent=400.0)
    clock.done = 0.65
    assert clock.share(5, clock.pace()) == pytest.approx(0.65, abs=1e-3)
    assert clock.share(6, clock.pace()) == pytest.approx(0.7)
    assert clock.share(9, clock.pace()) == 1.0
    slow = RunProgress(float("inf"), 1.0)
    found = []
    for _ in range(3):  # 0.2 s a step: the fifth would end at 1.0, after 0.99
        found.append(slow.share(0, slow.pace()))
        time.sleep(0.2)
        slow.step_ended()
    # The first is not timed; of the 0.79 s after it, the third ends at 0.4.
    assert found == pytest.approx([1e-4, 2e-4, 0.4 / 0.79], abs=0.05)
    assert slow.share(0, slow.pace()) == 1.0
    compiled = RunProgress(float("inf"), 3.0)
    compiled.pause_ended()
    for seconds in (1.4, 0.01):
        time.sleep(seconds)
        compiled.step_ended()
        assert compiled.share(0, compiled.pace()) < 0.1  # a first step of half the budget is no measure of the others


def test_counting_steps_from_the_clock_s_last_word_is_what_the_clock_says() -> None:
    """As long as steps take what they took: share 1 for the same one, and no validation that would cross the end."""
    clock = RunProgress(float("inf"), 1000.0)
    clock._steps.append(7.0)
    clock._anchor, clock.mark, clock.rehearsal = (0.0, 0.0), 0.0, 65.0
    said = clock.pace()
    for step in range(150):
        clock.started = time.monotonic() - 7.0 * step
        clock.mark = 7.0 * step
        now, counted = clock.pace(), said.later(step)
        assert counted.left == pytest.approx(now.left, abs=1e-3)
        assert counted.room == pytest.approx(now.room, abs=1e-3)
        if now.left >= 1:
            assert counted.share == pytest.approx(now.share, abs=1e-5)
        else:
            assert counted.left < 1
            break
    assert step == int((990 - 65 - clock.exit) / 7) - 1


def test_a_budget_without_room_for_a_step_is_refused(tmp_path) -> None:
    clock = RunProgress(100, 10.0, spent=7.0)
    assert clock.refusal() is None
    clock.rehearsal = 4.0
    assert re.search(r"time_budget 0:00:10 .* takes 0:00:04; raise it well above 0:00:12.", clock.refusal())
    run, module, data = budgeted(tmp_path, Watch(), min_epochs=3)
    with pytest.raises(ConfigError, match=r"trainer.min_epochs 3 may not fit in time_budget"):
        run.fit(module, data)
    run, module, data = budgeted(tmp_path, Watch())
    module.clock = {"started": time.monotonic() - 5.8}
    with pytest.raises(ConfigError, match=r"time_budget 0:00:06 leaves no time to train: 0:00:0\d is spent"):
        run.fit(module, data)
