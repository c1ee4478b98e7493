"""The module owns its parts: few bases, each Lightning hook in one class, no attribute declared but never set."""

import ast
import importlib
import inspect
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from torch import nn

import hjepa_pl
from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.losses import SIGReg
from hjepa_pl.masks import MaskConfig, build_masks
from hjepa_pl.models.config import EncoderConfig, PredictorConfig, ProjectorConfig
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.objectives.image_levels import ImageLevels
from hjepa_pl.objectives.local_crops import LocalCrops
from hjepa_pl.objectives.networks import build_networks, plan_depths
from hjepa_pl.objectives.record import StepRecord
from hjepa_pl.objectives.regularizers import Regularizers
from hjepa_pl.objectives.token_levels import TokenLevels
from hjepa_pl.types import ConfigError, train_data_module
from tests.conftest import SMALL_PREDICTOR, SMALL_PROJECTOR, TINY, make_batch

ROOT = Path(hjepa_pl.__file__).parent
STEPS = {
    "training_step",
    "validation_step",
    "test_step",
    "predict_step",
    "optimizer_step",
    "lr_scheduler_step",
    "forward",
}
CONFIGURE = {n for n in dir(pl.LightningModule) if n.startswith("configure_")}
HOOKS = (
    {n for cls in (CheckpointHooks, DataHooks, ModelHooks) for n in vars(cls) if not n.startswith("_")}
    | STEPS
    | CONFIGURE
)


def test_the_module_has_at_most_two_bases_of_the_package() -> None:
    bases = [cls for cls in HJEPALightningModule.__mro__[1:] if cls.__module__.startswith("hjepa_pl")]
    assert len(bases) <= 2


def test_each_hook_is_defined_in_one_class() -> None:
    defined: dict[str, list[str]] = {}
    for path in (ROOT / "modules").glob("*.py"):
        if path.stem == "finetune":  # a module of its own, which shares no hook with those of pretraining
            continue
        module = importlib.import_module(f"hjepa_pl.modules.{path.stem}")
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__:
                for hook in HOOKS & set(vars(cls)):
                    defined.setdefault(hook, []).append(name)
    assert {"setup", "on_save_checkpoint", "on_validation_start", "optimizer_step"} <= set(defined)
    assert {hook: classes for hook, classes in defined.items() if len(classes) > 1} == {}


def test_attributes_are_set_by_name_where_they_are_declared() -> None:
    records = ("NamedTuple", "Protocol", "settings", "dataclass")
    for path in [*(ROOT / "modules").glob("*.py"), *(ROOT / "objectives").glob("*.py")]:
        tree = ast.parse(path.read_text())
        assert not any(isinstance(n, ast.Name) and n.id == "setattr" for n in ast.walk(tree)), path
        for cls in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
            heads = " ".join(ast.unparse(n) for n in [*cls.bases, *cls.decorator_list])
            if not any(name in heads for name in records):
                bare = [n for n in cls.body if isinstance(n, ast.AnnAssign) and n.value is None]
                assert bare == [], f"{path}: {cls.name} declares {ast.unparse(bare[0])} and does not set it"


def test_objectives_work_in_plain_pytorch(tiny_module) -> None:
    """Built by hand from the same settings and weights they have the module's loss and gradient."""
    module = tiny_module(levels=[{"cell": 1}, {"cell": 2}, {"cell": "image"}], seed=5)
    levels, image = (LevelConfig(cell=1), LevelConfig(cell=2)), LevelConfig(cell="image")
    encoder, predictor = EncoderConfig(**TINY), PredictorConfig(**SMALL_PREDICTOR)
    depths = plan_depths(levels, (image,), depth=3, fused=False, pyramid=False)
    networks = build_networks(
        encoder, predictor, ProjectorConfig(**SMALL_PROJECTOR), None, levels, (image,), depths,
        moving_average=True, crop_context=False,
    )  # fmt: skip
    everything = nn.ModuleDict({name: net for name, net in networks._asdict().items() if net is not None})
    everything.load_state_dict(module.state_dict())
    tokens = TokenLevels(networks, levels, depths, "smooth_l1", "baseline")
    images = ImageLevels(networks, (), image, seed=5)
    masks, batch, record = build_masks(MaskConfig(), (8, 8), (1, 2), 5), make_batch(), StepRecord()
    assert not any(isinstance(x, nn.Module) for x in (tokens, images))
    crops = LocalCrops(networks.context_encoder, tokens, depths, MaskConfig(), 5).encode(batch)
    context = tokens.predict(batch.views[0], masks(batch.counters), crops, record)
    projections = images.compare(batch, context, crops, record)
    Regularizers([SIGReg()], 5).add(0, projections, record)
    loss = module.compute(batch)[0]
    assert torch.equal(record.total(), loss)
    record.total().backward()
    loss.backward()
    for name, parameter in module.named_parameters():
        other = everything.get_parameter(name)
        assert (parameter.grad is None) == (other.grad is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, other.grad), name


def test_data_of_ones_own_is_judged_by_its_batches(tiny_module, tmp_path) -> None:
    class Own(pl.LightningDataModule):
        """Has a few of the attributes that the module reads, and a loader of tensors."""

        views, multicrop, knows_epoch = 1, None, True

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.randn(4, 3, 16, 16), batch_size=2)

    assert train_data_module(Own()) is None
    data = MultiDatasetDataModule("digits")
    assert train_data_module(data) is data  # before it is loaded: `batches_per_epoch` is not known, nor asked for
    options = {"accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    with pytest.raises(ConfigError, match="the batch is a Tensor, not a ViewBatch"):
        pl.Trainer(default_root_dir=tmp_path, **options).fit(tiny_module(), Own())
