"""Real Trainer runs of the module: EMA counts, schedules, finite steps, checkpoints from Python."""

import math
import resource

import lightning.pytorch as pl
import pytest
import torch

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.modules.finite import FiniteCheck
from hjepa_pl.types import ConfigError, RunStopped
from hjepa_pl.utils.malloc import keep_freed_memory
from tests.conftest import SMALL_PREDICTOR, SMALL_PROJECTOR

ENCODER = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 8, "patch_size": 2, "in_chans": 1}
GRAY = {"gray": 0.0, "jitter": [0.4, 0.4, 0.0, 0.0], "flip": 0.0, "solarize": 0.0}


def make_module(cls=HJEPALightningModule, **settings):
    defaults = {"encoder": ENCODER, "predictor": SMALL_PREDICTOR, "projector": SMALL_PROJECTOR}
    return cls(**(defaults | settings))


def make_data(**settings):
    defaults = {"datasets": [{"name": "digits"}], "batch_size": 16, "views": 2, "epoch_size": 128, "augmentation": GRAY}
    return MultiDatasetDataModule(**(defaults | settings))


def make_trainer(tmp_path, **settings):
    defaults = {
        "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path,
        "log_every_n_steps": 1,
    }  # fmt: skip
    return pl.Trainer(**(defaults | settings))


class Subclass(HJEPALightningModule):
    """A user's own subclass with a hook of its own."""

    def on_train_batch_end(self, *args) -> None:
        self.seen = getattr(self, "seen", 0) + 1


@pytest.mark.parametrize("cls", [HJEPALightningModule, Subclass])
def test_one_ema_update_an_optimizer_step_under_accumulation_and_over_a_second_fit(tmp_path, cls) -> None:
    module = make_module(cls)
    trainer = make_trainer(tmp_path, accumulate_grad_batches=4, max_epochs=2)
    trainer.fit(module, make_data())
    assert trainer.global_step == 4  # 2 epochs of 8 batches
    assert module.ema.updates == 4
    again = make_trainer(tmp_path, accumulate_grad_batches=4, max_epochs=1)
    again.fit(module, make_data())
    assert again.global_step == 2
    assert module.ema.updates == 6


def test_the_target_after_a_step_is_the_average_of_before_and_the_new_context(tmp_path) -> None:
    module = make_module(ema={"momentum": 0.9})
    before = {n: p.detach().clone() for n, p in module.target_encoder.named_parameters()}
    trainer = make_trainer(tmp_path, max_steps=1, max_epochs=-1)
    trainer.fit(module, make_data())
    momentum = module.ema.momentum(1.0, 1)  # horizon capped at a third of the run: 0 for one step
    assert momentum == 0.0
    for name, context in module.context_encoder.named_parameters():
        expected = before[name] * momentum + context.detach() * (1 - momentum)
        assert torch.equal(module.target_encoder.get_parameter(name), expected)


def test_schedules_are_those_of_the_formulas(tmp_path) -> None:
    seen = []

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args) -> None:
            decay, plain = trainer.optimizers[0].param_groups
            seen.append((decay["lr"], decay["weight_decay"], plain["weight_decay"]))

    optimizer = {"lr": 0.01, "min_lr": 0.001, "warmup_steps": 2, "weight_decay": 0.1, "weight_decay_end": 0.4}
    trainer = make_trainer(tmp_path, callbacks=[Spy()])
    trainer.fit(make_module(optimizer=optimizer), make_data())
    lr = [0.01 * p / 2 for p in (1, 2)] + [
        0.001 + 0.009 * 0.5 * (1 + math.cos(math.pi * (s - 2) / 6)) for s in range(3, 9)
    ]
    decay = [0.4 - 0.3 * 0.5 * (1 + math.cos(math.pi * s / 8)) for s in range(1, 9)]
    for step, (rate, heavy, light) in enumerate(seen):
        assert rate == pytest.approx(lr[step], rel=1e-9)
        assert heavy == pytest.approx(decay[step], rel=1e-9)
        assert light == 0.0
    assert seen[-1][0] == pytest.approx(0.001)


def test_biases_norms_and_tables_do_not_decay() -> None:
    module = make_module()
    decay, plain = module.configure_optimizers().param_groups
    assert all(p.ndim >= 2 for p in decay["params"])
    free = {id(p) for p in plain["params"]}
    assert id(module.context_encoder.vit.pos_embed) in free
    assert id(module.predictor.mask_token) in free
    assert all(id(p) in free for m in module.trained_modules() for p in m.parameters() if p.ndim == 1)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_cuda_defers_the_finite_check(kind) -> None:
    module = make_module(optimizer={"kind": kind})
    optimizer = module.configure_optimizers()
    assert optimizer._step_supports_amp_scaling
    deferred = [module.finite_check.defers(optimizer, torch.device(kind)) for kind in ("cpu", "cuda", "mps", "xpu")]
    assert deferred == [False, True, False, False]


class Deferred(FiniteCheck):
    """Defers as CUDA's path does."""

    def defers(self, optimizer, device) -> bool:
        assert optimizer._step_supports_amp_scaling
        return True


class Queued(HJEPALightningModule):
    """Checks steps as on CUDA: the optimizer skips a bad one, and the host reads the result one step later."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.finite_check = Deferred(self, self.term_log)


@pytest.mark.parametrize(("bad_step", "last_step"), [(3, 7), (7, 7)])
@pytest.mark.parametrize(("base", "kind"), [(HJEPALightningModule, "adamw"), (Queued, "adamw"), (Queued, "muon")])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_stops_the_run_before_anything_takes_it(
    tmp_path, where, base, kind, bad_step, last_step
) -> None:
    class Broken(base):
        def compute(self, batch):
            total, record = super().compute(batch)
            if batch.counters.step == bad_step:
                if where == "loss":
                    record.terms["image"] = record.terms["image"] * torch.nan
                    total = total + record.terms["image"]
                else:
                    total = total + (total - total.detach()).abs().sqrt()  # infinite slope at 0
            return total, record

    module = make_module(Broken, optimizer={"kind": kind})
    saved = {}

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
            if batch.counters.step < bad_step:
                saved.update({n: p.detach().clone() for n, p in module.named_parameters()})

    trainer = make_trainer(tmp_path, callbacks=[Spy()])
    with pytest.raises(RunStopped, match=rf"step {bad_step}: .*(image|gradient).* is not finite; lower optimizer.lr"):
        trainer.fit(module, make_data())
    heard_of = bad_step if base is HJEPALightningModule else min(bad_step + 1, last_step)
    assert trainer.global_step <= heard_of + 1
    target = {n for n in saved if n.startswith("target")}
    for name, parameter in module.named_parameters():
        if base is HJEPALightningModule or name not in target:
            assert torch.equal(parameter, saved[name]), name
        assert torch.isfinite(parameter).all(), name


def test_checkpoints_from_python_are_plain_and_rebuild_the_module(tmp_path) -> None:
    module = make_module(levels=[{"block": 1}, {"cell": "image"}], seed=3)
    trainer = make_trainer(tmp_path)
    trainer.fit(module, make_data())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    plain = torch.load(tmp_path / "x.ckpt", weights_only=True)
    level = {"block": 1, "cell": 1, "weight": 1.0, "masked_view": None, "compare": "mean", "keep": 1.0}
    assert plain["hyper_parameters"]["levels"][0] == level
    again = HJEPALightningModule.load_from_checkpoint(tmp_path / "x.ckpt")
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(again.eval().encode(images), module.eval().encode(images))


def test_a_cpu_run_keeps_freed_memory_while_it_lasts(tmp_path) -> None:
    if not keep_freed_memory(False):
        pytest.skip("only glibc is told")

    class Count(pl.Callback):
        """Faults of filling large tensors at the end of training."""

        def __init__(self) -> None:
            self.faults = 0

        def on_train_end(self, trainer, module) -> None:
            self.faults = faults_of_filling()

    before, count = faults_of_filling(), Count()
    make_trainer(tmp_path, callbacks=[count]).fit(make_module(), make_data())
    assert count.faults < before / 2


def faults_of_filling() -> int:
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(16):  # above 32 MiB glibc always maps anew, whatever the process did before
        torch.empty(40 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start


@pytest.mark.parametrize("precision", ["bf16-true", "16-mixed"])
def test_precisions_under_which_the_target_does_not_move_are_refused(tmp_path, precision) -> None:
    trainer = make_trainer(tmp_path, precision="32-true")
    trainer.strategy.precision_plugin.precision = precision  # 16-mixed itself needs a card to be constructed
    with pytest.raises(ConfigError, match=f"trainer.precision={precision}"):
        trainer.fit(make_module(), make_data())


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        ({}, {"views": 1}, "invalid `data.views=1`: the image level compares views"),
        (
            {"levels": [{"cell": 1}], "projector": {}},
            {"views": 2},
            "invalid `data.views=2`: has no effect without an image level",
        ),
        ({"optimizer": {"warmup_epochs": 1}}, {}, "`optimizer.warmup_epochs=1`: must be < trainer.max_epochs=1"),
    ],
)
def test_model_and_data_that_do_not_go_together_are_refused(tmp_path, module, data, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path).fit(make_module(**module), make_data(**data))


def test_a_batch_that_is_not_ours_is_refused(tmp_path) -> None:
    loader = torch.utils.data.DataLoader(torch.randn(32, 1, 8, 8), batch_size=16)
    with pytest.raises(ConfigError, match="the batch is a Tensor, not a ViewBatch"):
        make_trainer(tmp_path).fit(make_module(), loader)


def test_a_run_without_an_end_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="the run has no end"):
        make_trainer(tmp_path, max_epochs=-1).fit(make_module(), make_data())


def test_drop_path_depends_on_the_step_and_not_on_what_else_draws(tmp_path) -> None:
    module = make_module(encoder=ENCODER | {"drop_path_rate": 0.5}).train()
    data = make_data()
    data.img_size, data.in_chans = 8, 1
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    trainer = make_trainer(tmp_path, max_steps=1)
    module.trainer = trainer
    module.term_log.add = lambda terms: None
    first = module.training_step(batch, 0)["loss"]
    torch.randn(100)
    assert torch.equal(module.training_step(batch, 0)["loss"], first)
    later = batch._replace(counters=batch.counters._replace(step=1))
    assert not torch.equal(module.training_step(later, 0)["loss"], first)
