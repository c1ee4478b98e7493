"""Every numeric key there is: values below its range are refused in one sentence that names it, those in it taken."""

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.__main__ import main
from hjepa_pl.callbacks.collapse_monitor import CollapseConfig
from hjepa_pl.cli.checkpoints import CheckpointConfig
from hjepa_pl.cli.run_folder import LoggingConfig
from hjepa_pl.losses import REGULARIZERS, Regularizer
from hjepa_pl.modules.check_trainer import check_keys
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import from_plain
from tests.cli.test_cli import TINY
from tests.cli.test_cli import config as config  # a fixture

NAN, INF = math.nan, math.inf
OWNERS = {
    "trainer": pl.Trainer.__init__,
    "model": HJEPALightningModule.__init__,
    "data": MultiDatasetDataModule.__init__,
    "collapse": CollapseConfig,
    "checkpoint": CheckpointConfig,
    "logging": LoggingConfig,
}
LISTS = ("levels", "regularizers", "datasets", "probe")


def numeric(kind: Any) -> bool:
    return kind in (int, float) or any(numeric(a) for a in typing.get_args(kind) if not isinstance(a, str))


def keys(prefix: str, owner: Any) -> Iterator[str]:
    """Yield the dotted numeric keys of a signature, settings classes within it included."""
    for name, kind in typing.get_type_hints(owner).items():
        parts = [kind, *typing.get_args(kind), *(b for a in typing.get_args(kind) for b in typing.get_args(a))]
        nested = [p for p in parts if dataclasses.is_dataclass(p)]
        for part in nested:
            for each in REGULARIZERS.values() if part is Regularizer else [part]:
                yield from keys(f"{prefix}.{name}", each)
        if not nested and name != "return" and numeric(kind) and typing.get_origin(kind) is not typing.ClassVar:
            yield f"{prefix}.{name}"


def put(tree: dict, path: list[str], value: Any) -> None:
    """Set a dotted key; of a list of settings, in its first entry."""
    for part in path[:-1]:
        node = tree.setdefault(part, [{}] if part in LISTS else {})
        tree = node[0] if isinstance(node, list) else node
    tree[path[-1]] = value


def make(key: str, value: Any, beside: Mapping[str, Any]) -> Any:
    """Make what reads a key, with the keys beside it that it needs."""
    owner, *path = key.split(".")
    given: dict = {"model": MODEL, "data": DATA}.get(owner, {})
    given = from_text(given)
    for name, other in beside.items():
        put(given, name.split("."), from_text(other))
    put(given, path, value)
    if owner == "trainer":
        check_keys(given, budgeted=False)
        return pl.Trainer(accelerator="cpu", logger=False, **{"enable_checkpointing": False, **given})
    if owner == "model":
        with torch.device("meta"):
            return HJEPALightningModule(**given)
    if owner == "data":
        return MultiDatasetDataModule(**given)
    return from_plain({"collapse": CollapseConfig, "checkpoint": CheckpointConfig}[owner], given, owner)


def held(made: Any, key: str) -> Any:
    """Return what an object holds for a key: a run is made of that, and a checkpoint stores it."""
    owner, *path = key.split(".")
    if owner == "trainer":
        own = {"devices": "num_devices"}.get(path[0], path[0])
        found = getattr(made, own)
        return -1 if found == INF else found  # all batches of a sanity check
    if path == ["max_bad_fraction"]:
        return made._bad.allowed
    node = made.hparams if owner == "model" else made
    for part in path:
        node = node[part] if isinstance(node, Mapping) else getattr(node, part)
        node = node[0] if part in LISTS else node
    return list(node) if isinstance(node, tuple) else node


def from_text(tree: Any) -> Any:
    """Return a deep copy of plain settings."""
    if isinstance(tree, dict):
        return {k: from_text(v) for k, v in tree.items()}
    return [from_text(v) for v in tree] if isinstance(tree, list) else tree


MODEL, DATA = TINY["model"]["init_args"], TINY["data"]["init_args"]
ROPE, RAND = {"encoder.position": "rope"}, {"augmentation.rand_augment": 2}
PYRAMID = {"levels": [{"cell": 1}, {"cell": 2}, {"cell": "image"}], "encoder.depth": 3}
TWO_SETS = {"datasets": [{"name": "digits"}, {"name": "digits_canvas"}]}
SHARDS = {"datasets": [{"name": "webdataset", "root": "."}]}
OWN = {"augmentation": "small"}
"""Beside a dataset's own augmentation: the data module's is its default."""
CROPS = {"multicrop.local_views": 4, "multicrop.local_size": 4}


def kind(name: str, other: str = "sigreg") -> dict:
    return {"regularizers": [{"kind": name}, *([{"kind": other}] if other != name else [])]}


VICREG, NTXENT, SIGREG = kind("vicreg"), kind("ntxent"), kind("sigreg", "sigreg")
# What is refused, and what is taken.
COUNT = ((-1, 0, 0.5, NAN, True), (1, 2))
COUNT0 = ((-1, 0.5, NAN, True), (0, 2))
SHARE = ((-0.1, 1.1, NAN), (0.0, 0.5, 1.0))
ABOVE0 = ((-1.0, 0.0, NAN, INF), (1e-9, 2.0))
FROM0 = ((-1.0, NAN, INF), (0.0, 2.0))
INSIDE = ((-0.1, 0.0, 1.0, NAN), (0.5,))
LIMIT = ((-1, -0.5, 1.5, NAN, True), (0, 0.5, 1.0, 3))
PAIR = (([0.5], [-1.0, 0.5], [0.9, 0.2], [NAN, 1.0], 0.5), ([0.2, 0.9],))
RATIO = (([0.5], [0.0, 0.5], [2.0, 1.0], [NAN, 1.0], 0.5), ([0.8, 1.5],))
BETWEEN = (([0.5], [0.5, 1.0], [-0.1, 0.5], [NAN, 0.9], 0.9), ([0.9, 0.95],))
NUMBERS = (([NAN], [0.5, 0.5], [INF]), ([0.5],))

Row = tuple[tuple[tuple, tuple], dict]
AUGMENTATION = {
    "crop_scale": (PAIR, {}), "crop_ratio": (RATIO, {}), "flip": (SHARE, {}),
    "jitter_prob": (((-1, 2, NAN), (0.5, 1)), {}),
    "jitter": ((([0.4], [-1.0, 0.4, 0.0, 0.0], [0.4, 0.4, NAN, 0.0]), ([0.4, 0.2, 0.0, 0.0],)), {}),
    "gray": (SHARE, {}), "blur": (SHARE, {}), "solarize": (SHARE, {}), "rotate": (((-1, 181, NAN), (0, 2)), {}),
    "translate": (((-0.1, 1.0, NAN), (0, 0.5)), {}), "rand_augment": (COUNT0, {}),
    "rand_magnitude": (((-1, 0.5, 31, True), (0, 2)), RAND), "erase": (SHARE, {}),
    "erase_scale": (PAIR, {"augmentation.erase": 0.5}), "erase_ratio": (RATIO, {"augmentation.erase": 0.5}),
    "mixup": (FROM0, {}), "cutmix": (FROM0, {}),
}  # fmt: skip
ROWS: dict[str, Row] = {
    "trainer.devices": (((-3, 0, 0.5, True), (1, 2)), {}), "trainer.num_nodes": (COUNT, {}),
    "trainer.fast_dev_run": (((-1, 0.5, NAN), (0, 1, 2, True, False)), {}),
    "trainer.max_epochs": (((-2, 0, 0.5, True), (1, 2)), {}), "trainer.max_steps": (((-2, 0, 0.5, True), (-1, 1)), {}),
    "trainer.min_epochs": (COUNT0, {}), "trainer.min_steps": (COUNT0, {}),
    "trainer.limit_train_batches": (((-1, 0, 0.0, -0.5, 1.5, NAN, True), (0.5, 1.0, 1)), {}),
    "trainer.limit_val_batches": (LIMIT, {}), "trainer.limit_test_batches": (LIMIT, {}),
    "trainer.limit_predict_batches": (LIMIT, {}), "trainer.overfit_batches": (((-1, 0.5, 1, 1.0, True), (0, 0.0)), {}),
    "trainer.val_check_interval": (((-1, 0, 0.0, 1.5, NAN, True), (0.5, 1.0, 3)), {}),
    "trainer.check_val_every_n_epoch": (COUNT, {}), "trainer.num_sanity_val_steps": (((-2, 0.5, True), (-1, 0, 2)), {}),
    "trainer.log_every_n_steps": (COUNT, {}), "trainer.accumulate_grad_batches": (COUNT, {}),
    "trainer.gradient_clip_val": (((-3, -0.1, NAN, INF, True), (0, 0.5, 3)), {}),
    "trainer.reload_dataloaders_every_n_epochs": (((-1, 1, True), (0,)), {}),
    "model.encoder.img_size": (((-1, 0, 9, 0.5, [8], True), (8, [8, 16])), {}),
    "model.encoder.patch_size": (((-1, 0, 3, 0.5, True), (1, 2)), {}), "model.encoder.in_chans": (COUNT, {}),
    "model.encoder.embed_dim": (((-1, 0, 25, 0.5, True), (24, 48)), {}), "model.encoder.depth": (COUNT, {}),
    "model.encoder.num_heads": (((-1, 0, 5, 0.5, True), (1, 2)), {}),
    "model.encoder.rope_theta": (((-1, 0, 1, NAN, INF), (10.0, 1e4)), ROPE),
    "model.encoder.init_values": (ABOVE0, {}), "model.encoder.drop_path_rate": (((-0.1, 1.0, NAN), (0.0, 0.5)), {}),
    "model.encoder.reg_tokens": (COUNT0, {}),
    "model.encoder.checkpoint_every": (((-1, 0, 3, True), (1, 2)), {"encoder.grad_checkpointing": True}),
    "model.levels.block": (((-1, 0, 2, 0.5, True), (1,)), {}),
    "model.levels.cell": (((-1, 0, 3, 0.5, True), (1, 2)), {}),
    "model.levels.keep": (((-0.5, 0, 1.1, NAN, True), (0.5, 1)), {"levels": [{"cell": "image"}], "predictor": {}}),
    "model.levels.weight": (ABOVE0, {}), "model.masks.num_targets": (COUNT, {}),
    "model.masks.target_scale": ((([0.5], [0.0, 0.2], [0.4, 0.2], [0.2, 1.1]), ([0.15, 0.2],)), {}),
    "model.masks.aspect_ratio": (RATIO, {}), "model.masks.max_visible": (((-1.0, 0.0, 1.1, NAN), (0.5, 1.0)), {}),
    "model.masks.nest": (((-1.0, 0.0, 1.1, NAN), (0.5,)), {"masks.kind": "hierarchical", **PYRAMID}),
    "model.masks.ratio": (INSIDE, {"masks.kind": "random"}), "model.masks.per_image": (COUNT, {}),
    "model.masks.predicted": (((-0.1, 0.0, 1.1, NAN), (0.5, 1.0)), {"masks.kind": "inverse_block"}),
    "model.target_blocks": (COUNT, {}),
    "model.predictor.embed_dim": (((-1, 0, 25, 0.5, True), (24, 48)), {}), "model.predictor.depth": (COUNT, {}),
    "model.predictor.num_heads": (((-1, 0, 5, 0.5, True), (1, 2)), {}),
    "model.predictor.mlp_ratio": (ABOVE0, {}),
    "model.predictor.rope_theta": (((-1, 0, 1, NAN, INF), (10.0, 1e4)), {"predictor.position": "rope"}),
    "model.predictor.init_values": (ABOVE0, {}),
    "model.predictor.checkpoint_every": (((-1, 0, 2, True), (1,)), {"predictor.grad_checkpointing": True}),
    "model.projector.hidden_dim": (COUNT, {}), "model.projector.hidden_layers": (COUNT, {}),
    "model.projector.out_dim": (COUNT, {}), "model.pyramid.dim": (COUNT, PYRAMID),
    "model.pyramid.weight": (ABOVE0, PYRAMID),
    "model.regularizers.weight": (ABOVE0, SIGREG), "model.regularizers.num_slices": (COUNT, SIGREG),
    "model.regularizers.knots": (((-1, 0, 4, 0.5, True), (5, 17)), SIGREG),
    "model.regularizers.t_max": (((-1, 0, NAN, INF), (1, 3)), SIGREG),
    "model.regularizers.invariance": (FROM0, VICREG), "model.regularizers.variance": (ABOVE0, VICREG),
    "model.regularizers.covariance": (FROM0, VICREG), "model.regularizers.temperature": (ABOVE0, NTXENT),
    "model.regularizers.hard_negatives": (ABOVE0, NTXENT),
    "model.ema.momentum": (((-0.1, 1.0, 1.1, NAN), (0.0, 0.9)), {}),
    "model.ema.momentum_end": (((-0.1, 0.5, 1.1, NAN), (0.999, 1.0)), {}),
    "model.optimizer.lr": (ABOVE0, {}), "model.optimizer.min_lr": (((-1, 0.5, NAN), (0, 1e-9)), {}),
    "model.optimizer.min_lr_ratio": (SHARE, {}), "model.optimizer.warmup_epochs": (FROM0, {}),
    "model.optimizer.warmup_steps": (COUNT0, {}), "model.optimizer.weight_decay": (FROM0, {}),
    "model.optimizer.cooldown_fraction": (((-0.1, 1.0, NAN), (0.0, 0.5)), {"optimizer.schedule": "wsd"}),
    "model.optimizer.weight_decay_end": (FROM0, {}), "model.optimizer.betas": (BETWEEN, {}),
    "model.seed": (COUNT0, {}),
    "data.datasets.weight": (ABOVE0, TWO_SETS), "data.datasets.fraction": (((-1, 0, 1.1, NAN), (0.5, 1.0)), {}),
    "data.datasets.samples": (COUNT, SHARDS), "data.datasets.shuffle_buffer": (COUNT, SHARDS),
    **{f"data.datasets.augmentation.{k}": (v, {**OWN, **{f"datasets.{b}": x for b, x in beside.items()}})
       for k, (v, beside) in AUGMENTATION.items() if k not in ("mixup", "cutmix")},
    # Whole batches are mixed, whatever the set of an image.
    "data.datasets.augmentation.mixup": (((-1.0, 0.5, NAN), (0.0,)), OWN),
    "data.datasets.augmentation.cutmix": (((-1.0, 0.5, NAN), (0.0,)), OWN),
    "data.batch_size": (((-1, 0, 1, 0.5, True), (2, 32)), {}), "data.views": (COUNT, {}),
    "data.epoch_size": (COUNT, {}),
    "data.temperature": (ABOVE0, {"sampling": "temperature", **TWO_SETS}),
    **{f"data.augmentation.{k}": v for k, v in AUGMENTATION.items()},
    "data.probe.max_train": (((-1, 0, 1, 0.5, True), (2, 100)), {}), "data.probe.max_test": (COUNT, {}),
    "data.probe.holdout": (INSIDE, {"probe": [{"name": "folder", "root": "."}]}), "data.num_workers": (COUNT0, {}),
    "data.eval_batch_size": (COUNT, {}), "data.mean": (NUMBERS, {"std": [0.5], "in_chans": 1}),
    "data.std": ((([NAN], [0.0], [-1.0], [INF]), ([0.5],)), {"mean": [0.5], "in_chans": 1}), "data.seed": (COUNT0, {}),
    "data.img_size": (((-1, 0, 0.5, True), (8, 16)), {}), "data.in_chans": (((-1, 0, 0.5, True), (1, 3)), {}),
    "data.multicrop.local_views": (COUNT, {}), "data.multicrop.local_size": (((-1, 0, 0.5, True), (4, 8)), CROPS),
    "data.multicrop.local_scale": (PAIR, CROPS), "data.multicrop.min_local_views": (((-1, 5, 0.5, True), (1, 2)),
    {**CROPS, "multicrop.warmup_epochs": 1.0}),
    "data.resolution.start": (((-1, 0, 0.5, True), (4, 8)), {}),
    "data.resolution.until": (((-1, 0, 1.5, NAN, True), (0.2, 1)), {"resolution.start": 4}),
    "data.multicrop.warmup_epochs": (ABOVE0, {**CROPS, "multicrop.min_local_views": 1}),
    "data.max_bad_fraction": (SHARE, {}), "data.holdout": (((-0.1, 0.6, NAN), (0.1, 0.5)), {}),
    "collapse.every_n_steps": (((-1, 0, 0.5, NAN), (1, 2)), {}), "collapse.window": (((-1, 0, 1, NAN), (20, 100)), {}),
    "collapse.patience": (((-1, 0, NAN), (1, 2)), {}), "collapse.min_std": (((-1, 1, NAN), (0, 0.5)), {}),
    "collapse.min_spread": (((-1, 1, NAN), (0, 0.5)), {}),
    "collapse.max_position_share": (((-1, 0, 1.1, NAN), (0.5, 1)), {}),
    "collapse.max_image_share": (((-1.0, 0.0, 1.1, NAN), (0.5, 1.0)), {}),
    "collapse.min_rank": (((-1, 0, NAN, INF), (1, 2)), {}), "checkpoint.save_top_k": (COUNT0, {}),
    "checkpoint.every_n_epochs": (COUNT, {}), "checkpoint.last_every_n_steps": (COUNT, {}),
}  # fmt: skip
ALL = [key for prefix, owner in OWNERS.items() for key in keys(prefix, owner)]
ELSEWHERE = {"trainer.max_time"}  # refused whatever it holds, in test_cli.py


def test_every_numeric_key_has_a_row() -> None:
    assert set(ALL) - ELSEWHERE == set(ROWS)


@pytest.mark.parametrize("key", ROWS)
def test_values_out_of_range_are_refused_by_name_and_those_in_it_arrive(key) -> None:
    (refused, taken), beside = ROWS[key]
    for value in refused:
        with pytest.raises(ConfigError) as raised:
            make(key, value, beside)
        assert key.rpartition(".")[2] in str(raised.value), value
        assert "\n" not in str(raised.value)
    for value in taken:
        assert held(make(key, value, beside), key) == value


@pytest.mark.parametrize("key", [key for key in ROWS if key.startswith("trainer.")])
def test_check_refuses_a_trainer_s_key_as_typed(config, capsys, key) -> None:
    value = ROWS[key][0][0][0]
    assert main(["check", str(config), f"--{key}={value}"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("check: ")]
    assert len(said) == 1
    assert f"invalid `{key}={value}`: must be" in said[0]


@pytest.mark.parametrize("command", ["fit", "check"])
@pytest.mark.parametrize(
    "words",
    [
        "trainer.gradient_clip_val=-3", "trainer.accumulate_grad_batches=0", "trainer.precision=16",
        "trainer.devices=-1", "trainer.devices=x", "trainer.accelerator=tpu", "trainer.barebones=true",
        "trainer.sync_batchnorm=true", "trainer.use_distributed_sampler=true", "trainer.profiler=loud",
        "trainer.gradient_clip_algorithm=value", "trainer.model_registry=x", "trainer.min_epochs=2",
        "seed_everything=false", "seed_everything=true", "seed_everything=-3", "seed_everything=4294967296",
    ],
)  # fmt: skip
def test_fit_and_check_refuse_before_data_is_read(config, capsys, monkeypatch, command, words) -> None:
    monkeypatch.setattr(MultiDatasetDataModule, "prepare_data", None)  # to call it, or setup, would be an error
    monkeypatch.setattr(MultiDatasetDataModule, "setup", None)
    assert main([command, "--config", str(config), f"--{words}"]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("check: ", "hjepa: error"))]
    assert len(said) == 1
    assert f"invalid `{words}`: " in said[0]
