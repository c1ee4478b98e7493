"""Trainers that cannot train the model are refused before data is read, from Python and from the command line."""

import lightning.pytorch as pl
import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from hjepa_pl.__main__ import main
from hjepa_pl.modules.check_trainer import check_keys, check_strategy
from hjepa_pl.types import ConfigError
from tests.cli.test_cli import config as config  # a fixture
from tests.modules.test_training import make_data, make_module, make_trainer


@pytest.mark.parametrize(("strategy", "named"), [(FSDPStrategy, "fsdp"), (ModelParallelStrategy, "ModelParallelStrat")])
def test_sharding_strategies_are_refused_by_name_before_data_is_read(tmp_path, strategy, named) -> None:
    class Unread(type(make_data())):
        def prepare_data(self) -> None:
            raise AssertionError("data was read")

    trainer = make_trainer(tmp_path)
    # Lightning itself refuses to build a Trainer of it on a CPU.
    accelerator, trainer._accelerator_connector.strategy = trainer.accelerator, strategy()
    trainer.strategy.accelerator = accelerator
    trainer.strategy.cluster_environment = LightningEnvironment()
    with pytest.raises(ConfigError, match=rf"invalid `trainer.strategy={named}.* must be 'auto' or 'ddp'"):
        trainer.fit(make_module(), Unread(datasets=[{"name": "digits"}]))


def test_one_device_and_ddp_are_taken() -> None:
    for strategy in (SingleDeviceStrategy(), DDPStrategy(), DDPStrategy(start_method="spawn")):
        check_strategy(strategy)
    for name in ("ddp", "ddp_spawn", "ddp_notebook", "ddp_find_unused_parameters_true"):
        check_strategy(pl.Trainer(accelerator="cpu", devices=2, strategy=name, logger=False).strategy)


@pytest.mark.parametrize("command", ["fit", "check"])
@pytest.mark.parametrize("name", ["fsdp", "fsdp_cpu_offload", "deepspeed_stage_2", "xla", "sideways"])
def test_sharding_strategies_are_refused_from_the_command_line(config, capsys, command, name) -> None:
    assert main([command, "--config", str(config), f"--trainer.strategy={name}"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error" in line or line.startswith("check: ")]
    assert len(said) == 1
    assert f"invalid `trainer.strategy={name}`: must be 'auto' or 'ddp'" in said[0]


def test_a_warm_up_as_long_as_the_run_is_refused_before_data_is_read(tmp_path) -> None:
    class Unread(type(make_data())):
        def prepare_data(self) -> None:
            raise AssertionError("data was read")

    for unit in ("epochs", "steps"):
        trainer = make_trainer(tmp_path, max_epochs=3, max_steps=3)
        said = rf"invalid `optimizer.warmup_{unit}=3`: must be < trainer.max_{unit}=3."
        with pytest.raises(ConfigError, match=said):
            trainer.fit(make_module(optimizer={f"warmup_{unit}": 3}), Unread(datasets=[{"name": "digits"}]))


@pytest.mark.parametrize(
    ("trainer", "optimizer", "said"),
    [
        ({}, {"warmup_steps": 16}, "invalid `optimizer.warmup_steps=16`: is 16 steps, and the run has 16; use less"),
        (
            {"max_steps": 9},
            {"warmup_epochs": 1.2},
            "invalid `optimizer.warmup_epochs=1.2`: is 10 steps, and the run has 9",
        ),
        ({"limit_train_batches": 0.1}, {}, "`trainer.limit_train_batches=0.1`: leaves none of 8 batches"),
        ({"val_check_interval": 9}, {}, "`trainer.val_check_interval=9`: must be <= 8"),
        ({"val_check_interval": 0.1}, {}, "`trainer.val_check_interval=0.1`: is less than one of 8 batches"),
    ],
)
def test_lengths_that_need_the_data_s_are_refused_before_the_untrained_network_is_judged(
    tmp_path, trainer, optimizer, said
) -> None:
    class Unjudged(pl.Callback):
        def on_sanity_check_start(self, *args) -> None:
            raise AssertionError("the untrained network was judged")

    run = make_trainer(tmp_path, **({"max_epochs": 2, "callbacks": [Unjudged()]} | trainer))
    data = make_data(probe=[{"name": "digits", "max_train": 32, "max_test": 32}])
    with pytest.raises(ConfigError, match=said):
        run.fit(make_module(optimizer=optimizer), data)


@pytest.mark.parametrize("name", ["ddp_spawn", "ddp_notebook", "ddp_fork_find_unused_parameters_true"])
def test_a_command_starts_its_processes_by_ddp(name) -> None:
    with pytest.raises(ConfigError, match=f"invalid `trainer.strategy={name}`: .* use 'ddp' in a command"):
        check_keys({"strategy": name}, budgeted=False)
    for taken in ("auto", "ddp", "ddp_find_unused_parameters_true"):
        check_keys({"strategy": taken}, budgeted=False)
