"""The pyramid inside the module: what it learns from, what it leaves alone, and what it is good for."""

import math
from collections import OrderedDict

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import MultiScaleRoIAlign

from hjepa_pl.cli.resume import check_same_settings
from hjepa_pl.losses.prediction import position_baseline, prediction_loss
from hjepa_pl.models.config import PyramidConfig
from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.types import ConfigError
from tests.conftest import SMALL_PREDICTOR, TINY, make_batch
from tests.modules.test_training import make_data, make_trainer

TOKENS = [{"cell": 1}, {"cell": 2}]
SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 8, "patch_size": 2, "in_chans": 1}


def seeded(factory, **settings) -> HJEPALightningModule:
    torch.manual_seed(7)
    return factory(**({"levels": TOKENS, "pyramid": {}} | settings))


def training_maps(module: HJEPALightningModule, batch) -> tuple[torch.Tensor, ...]:
    """Return the maps that a training step makes."""
    made = []
    handle = module.pyramid.register_forward_hook(lambda *args: made.append(args[2]))
    module.compute(batch)
    handle.remove()
    return made[0]


KINDS = {
    "add": {},
    "concat": {"pyramid": {"fusion": "concat", "dim": 16}},
    "image level": {"levels": [*TOKENS, {"cell": "image"}]},
    "three cells": {"levels": [{"cell": 1}, {"cell": 2}, {"cell": 4}]},
    "no finest cell": {"levels": [{"cell": 2}, {"cell": 4}]},
    "depths that share a cell": {"levels": [{"cell": 1, "block": 2}, {"cell": 1}, {"cell": 2}]},
    "fused": {"levels": [{"cell": 1, "block": 2}, {"cell": 2}], "predictor": SMALL_PREDICTOR | {"context": "fused"}},
    "separate": {"predictor": SMALL_PREDICTOR | {"targets": "separate"}},
    "cross": {"predictor": SMALL_PREDICTOR | {"attention": "cross"}},
    "random masks": {"masks": {"kind": "random"}},
    "cosine": {"prediction": "cosine"},
    "registers": {"encoder": TINY | {"reg_tokens": 2}},
    "rope, checkpointing": {"encoder": TINY | {"position": "rope", "grad_checkpointing": True}},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_trained_parameter_has_a_gradient_and_no_moving_average_has(tiny_module, name) -> None:
    module = seeded(tiny_module, **KINDS[name]).train()
    assert {module.pyramid, module.pyramid_heads} <= set(module.trained_modules())
    views = 2 if module.image_level else 1
    loss, _ = module.compute(make_batch(views=views))
    loss.backward()
    for key, parameter in module.named_parameters():
        if key.startswith("target_"):
            assert not parameter.requires_grad, key
            assert parameter.grad is None, key
        elif key == "pyramid.absent" and name == "random masks":
            assert not parameter.grad.any()  # each patch is seen or predicted there
        else:
            assert parameter.grad.abs().sum() > 0, key
    optimized = {id(p) for g in module.configure_optimizers().param_groups for p in g["params"]}
    assert optimized == {id(p) for n, p in module.named_parameters() if not n.startswith("target_")}
    assert not any(m.training for m in module.target_pyramid.modules())
    assert [x.shape[2:] for x in module.encode_pyramid(torch.randn(1, 3, 16, 16))] == [(8, 8), (4, 4), (2, 2)]


def test_the_loss_is_the_mean_distance_of_plain_level_targets(tiny_module) -> None:
    module = seeded(tiny_module, prediction="mse", pyramid={"weight": 0.3})
    batch = make_batch(views=1)
    loss, record = module.compute(batch)
    terms = record.terms
    masks = module.masks(batch.counters)
    plain = module.target_maps(batch.views[0])
    parts = []
    for level, said in module.pyramid_heads(training_maps(module, batch), masks.targets):
        index = masks.targets[level].flatten(1)
        distance = prediction_loss(said, torch.stack([plain[level][b, index[b]] for b in range(8)]), "mse")
        parts.append(distance / position_baseline(plain[level], "mse"))
    assert len(parts) == 3  # two levels, and the map at 4p, which has none
    assert float(terms["pyramid"]) == pytest.approx(float(sum(parts)) / 3, rel=1e-6)
    assert float(terms["pyramid_weighted"]) == pytest.approx(0.3 * float(terms["pyramid"]), rel=1e-6)
    total = terms["last_c1_weighted"] + terms["last_c2_weighted"] + terms["pyramid_weighted"]
    assert float(loss) == pytest.approx(float(total), rel=1e-6)


@pytest.mark.parametrize("block", [1, 2, "last"])
@pytest.mark.parametrize("context", ["last", "fused"])
def test_level_targets_and_losses_are_bit_identical_without_it(tiny_module, block, context) -> None:
    """The pyramid reads blocks 1, 2 and last of three, the levels' own depths among them."""
    settings = {
        "levels": [{"cell": 1, "block": block}, {"cell": 2, "block": 1 if block == 2 else 2}],
        "predictor": SMALL_PREDICTOR | {"context": context},
    }
    without, module = (seeded(tiny_module, pyramid=p, **settings) for p in (None, {}))
    batch = make_batch(views=1)
    for a, b in zip(without.target_maps(batch.views[0]), module.target_maps(batch.views[0]), strict=True):
        assert torch.equal(a, b)
    old, new = without.compute(batch)[1].terms, module.compute(batch)[1].terms
    assert set(new) - set(old) == {"pyramid"}
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert set(without.state_dict()) == {k for k in module.state_dict() if "pyramid" not in k}


def gradient_of(factory, **settings) -> torch.Tensor:
    module = seeded(factory, **settings)
    module.compute(make_batch(views=1))[0].backward()
    return module.context_encoder.vit.patch_embed.proj.weight.grad


def test_every_setting_changes_the_encoders_gradient(tiny_module) -> None:
    """No silent no-op, and the weight is that of the term."""
    none, one, two = (gradient_of(tiny_module, pyramid=p) for p in (None, {}, {"weight": 2.0}))
    assert not torch.allclose(none, one, rtol=1e-2)
    torch.testing.assert_close(two - none, 2 * (one - none), atol=1e-6, rtol=1e-4)
    for other in ({"fusion": "concat"}, {"dim": 8}):
        assert not torch.allclose(gradient_of(tiny_module, pyramid=other), one, rtol=1e-2)


@pytest.mark.parametrize("masks", [{}, {"kind": "random"}], ids=["blocks", "random"])
def test_hidden_pixels_never_reach_the_maps_in_training(tiny_module, masks) -> None:
    module = seeded(tiny_module, masks=masks)
    batch = make_batch(views=1)
    visible = torch.zeros(8, 64).scatter_(1, module.masks(batch.counters).context, 1.0).reshape(8, 1, 8, 8)
    visible = visible.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).bool()
    changed = batch._replace(views=(torch.where(visible, batch.views[0], 100.0),))
    seen = batch._replace(views=(torch.where(visible, 100.0, batch.views[0]),))
    before = training_maps(module, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, training_maps(module, changed), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, training_maps(module, seen), strict=True))


def test_predictions_reach_the_maps_and_the_loss_reaches_the_predictor(tiny_module) -> None:
    module = seeded(tiny_module)
    batch = make_batch(views=1)
    terms = module.compute(batch)[1].terms
    terms["pyramid"].backward()
    assert module.predictor.embed.weight.grad.abs().sum() > 0
    before = training_maps(module, batch)
    with torch.no_grad():
        module.predictor.heads[0].bias += 1.0
    assert not any(torch.equal(a, b) for a, b in zip(before, training_maps(module, batch), strict=True))


@pytest.mark.parametrize("fusion", ["add", "concat"])
def test_the_loss_goes_down_on_one_batch(tiny_module, fusion) -> None:
    module = seeded(tiny_module, pyramid={"fusion": fusion}, prediction="mse").train()
    batch = make_batch(views=1, images=4)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss, record = module.compute(batch)
        terms = record.terms
        loss.backward()
        optimizer.step()
        losses.append(terms["pyramid"].item())
    assert losses[-1] < 0.6 * losses[0]


def test_the_target_pyramid_is_the_average_after_every_step_of_a_run(tmp_path) -> None:
    module = HJEPALightningModule(encoder=SMALL, levels=TOKENS, predictor=SMALL_PREDICTOR, pyramid={})
    before, checked = {n: p.clone() for n, p in module.target_pyramid.named_parameters()}, []

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args) -> None:
            momentum = module.ema.momentum(1.0, trainer.max_epochs * trainer.num_training_batches)
            for name, online in module.pyramid.named_parameters():
                expected = before[name] * momentum + online.detach() * (1.0 - momentum)
                found = module.target_pyramid.get_parameter(name)
                checked.append(0 < momentum < 1 and torch.equal(found, expected) and not torch.equal(found, online))
                before[name] = found.clone()

    trainer = make_trainer(tmp_path, callbacks=[Spy()])
    trainer.fit(module, make_data(views=1))
    assert module.ema.updates == trainer.global_step == 8  # one update a step, of both networks together
    assert len(checked) == 8 * len(before)
    assert all(checked)
    assert trainer.logged_metrics["train/pyramid"] > 0
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    plain = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert plain["hyper_parameters"]["pyramid"] == {"fusion": "add", "dim": None, "weight": 1.0}
    again = HJEPALightningModule.load_from_checkpoint(tmp_path / "x.ckpt").eval()
    images = torch.randn(2, 1, 8, 8)
    for a, b in zip(again.encode_pyramid(images), module.eval().encode_pyramid(images), strict=True):
        assert torch.equal(a, b)
    assert module.encode_pyramid(images)[0].std() > 0


@pytest.mark.parametrize("size", [(16, 16), (18, 14), (28, 28), (10, 24)], ids=str)
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_encode_pyramid_takes_sizes_other_than_in_training(tiny_module, size, position) -> None:
    module = seeded(tiny_module, encoder=TINY | {"position": position}, pyramid={"dim": 20})
    maps = module.encode_pyramid(torch.randn(2, 3, *size))
    assert [tuple(m.shape) for m in maps] == [
        (2, 20, math.ceil(size[0] / s), math.ceil(size[1] / s)) for s in (2, 4, 8)
    ]
    assert not any(m.requires_grad for m in maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(m.dtype == torch.float32 for m in module.encode_pyramid(torch.randn(2, 3, *size)))


def test_encode_pyramid_is_the_judged_networks(tiny_module) -> None:
    module = seeded(tiny_module).eval()
    images = make_batch(images=2).views[0]

    def scaled(network: nn.Module) -> bool:
        """Return whether the maps change where the network does."""
        before = module.encode_pyramid(images)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.1)
        return not any(torch.equal(a, b) for a, b in zip(before, module.encode_pyramid(images), strict=True))

    found = {name: scaled(getattr(module, name)) for name in (
        "pyramid", "context_encoder", "predictor", "pyramid_heads", "target_pyramid", "target_encoder"
    )}  # fmt: skip
    assert [name for name, changed in found.items() if changed] == ["target_pyramid", "target_encoder"]
    with torch.no_grad():  # the tokens are those of the full image, at all three depths
        tokens = module.target_encoder(images, blocks=(1, 2, "last"))
    direct = module.target_pyramid(list(tokens.values()), (8, 8))
    assert all(torch.equal(a, b) for a, b in zip(module.encode_pyramid(images), direct, strict=True))


class Backbone(nn.Module):
    """The five lines that `pyramid_features` tells of."""

    def __init__(self, module: HJEPALightningModule) -> None:
        super().__init__()
        self.module, self.out_channels = module, module.pyramid.dim

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        return OrderedDict(zip("012", self.module.pyramid_features(images), strict=True))


@pytest.mark.parametrize("finetune", [False, True])
def test_it_feeds_torchvisions_detector(tiny_module, finetune) -> None:
    module = seeded(tiny_module, pyramid={"dim": 8})
    if finetune:
        module.target_encoder.requires_grad_(True)
        module.target_pyramid.requires_grad_(True)
    detector = FasterRCNN(
        Backbone(module), num_classes=3, min_size=32, max_size=48,
        rpn_anchor_generator=AnchorGenerator(((8,), (16,), (24,)), ((1.0,),) * 3),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], output_size=2, sampling_ratio=2),
        rpn_pre_nms_top_n_train=50, rpn_post_nms_top_n_train=20, rpn_post_nms_top_n_test=20,
        box_batch_size_per_image=16,
    )  # fmt: skip
    images = [torch.rand(3, 32, 40), torch.rand(3, 30, 32)]
    box = {"boxes": torch.tensor([[4.0, 4.0, 20.0, 24.0]]), "labels": torch.tensor([1])}
    losses = detector.train()(images, [box, box])
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    assert detector.rpn.head.cls_logits.weight.grad.abs().sum() > 0
    assert detector.roi_heads.box_predictor.cls_score.weight.grad.abs().sum() > 0
    first = module.target_encoder.vit.patch_embed.proj.weight.grad
    assert (first is not None and bool(first.abs().sum() > 0)) is finetune
    assert all((p.grad is not None) is finetune for p in module.target_pyramid.smooths.parameters())
    assert {"boxes", "labels", "scores"} == set(detector.eval()(images)[0])


def test_it_feeds_torchvisions_segmentation_head(tiny_module) -> None:
    module = seeded(tiny_module, pyramid={"dim": 8})
    head = FCNHead(8, 5)
    images = make_batch(images=2).views[0]
    classes = head(module.encode_pyramid(images)[0])
    assert classes.shape == (2, 5, 8, 8)
    nn.functional.cross_entropy(classes, torch.randint(0, 5, (2, 8, 8))).backward()
    assert all(p.grad.abs().sum() > 0 for p in head.parameters() if p.ndim > 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": [{"cell": 1}]}, "pyramid with one level: the token levels all have levels.cell 1; add one"),
        ({"levels": [{"cell": 2}, {"cell": 2, "block": 1}]}, "pyramid with one level: .* levels.cell 2"),
        ({"levels": [{"cell": "image"}]}, r"pyramid learns from the token levels and levels holds none; add \{cell: 1"),
        ({"levels": [{"cell": 1}, {"cell": 7}], "encoder": TINY | {"img_size": 28}}, "levels.cell 7 has no map in the"),
        ({"encoder": TINY | {"depth": 2}}, "pyramid reads three depths and the encoder has 2 blocks; set encoder"),
        ({"pyramid": {"weight": 0}}, "pyramid.weight must be a positive number, got 0.0; set pyramid to null"),
        ({"pyramid": {"weight": -1.0}}, "pyramid.weight must be a positive number, got -1.0"),
        ({"pyramid": {"weight": math.nan}}, "pyramid.weight must be a positive number, got nan"),
        ({"pyramid": {"dim": 0}}, "pyramid.dim must be at least 1, got 0"),
        ({"pyramid": {"fusion": "mean"}}, "pyramid.fusion must be 'add' or 'concat', got 'mean'"),
        ({"pyramid": {"width": 8}}, "pyramid does not accept 'width'; its keys are fusion, dim, weight"),
        ({"pyramid": True}, "pyramid must be a PyramidConfig or a mapping of its fields, got True"),
    ],
)  # fmt: skip
def test_what_gives_it_nothing_to_do_is_refused_in_one_sentence(tiny_module, settings, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        seeded(tiny_module, **settings)
    assert "\n" not in str(caught.value)


def test_a_fusion_that_is_none_is_refused_from_python_too() -> None:
    with pytest.raises(ConfigError, match=r"pyramid\.fusion must be 'add' or 'concat', got 'mean'"):
        PyramidConfig(fusion="mean")  # type: ignore[arg-type]


def test_without_a_pyramid_there_are_no_maps(tiny_module) -> None:
    module = seeded(tiny_module, pyramid=None)
    assert (module.pyramid, module.target_pyramid, module.hparams["pyramid"]) == (None, None, None)
    with pytest.raises(ConfigError, match=r"encode_pyramid needs a pyramid .* set pyramid: \{\}") as caught:
        module.encode_pyramid(torch.randn(1, 3, 16, 16))
    assert "\n" not in str(caught.value)


def test_settings_from_python_and_from_a_mapping_are_one(tiny_module) -> None:
    plain = seeded(tiny_module, pyramid={"fusion": "concat", "dim": 8}).hparams["pyramid"]
    assert plain == {"fusion": "concat", "dim": 8, "weight": 1.0}
    assert seeded(tiny_module, pyramid=PyramidConfig(fusion="concat", dim=8)).hparams["pyramid"] == plain


def test_a_resumed_run_may_be_given_another_weight_and_no_other_shape() -> None:
    plain = {"fusion": "add", "dim": 8, "weight": 1.0}
    old, wider, heavier = ({"pyramid": plain | change} for change in ({}, {"dim": 9}, {"weight": 2.0}))
    check_same_settings(old, heavier, override=True)
    for new, override in ((heavier, False), (wider, True), ({"pyramid": None}, True)):
        with pytest.raises(ConfigError, match="made with other settings: pyramid"):
            check_same_settings(old, new, override=override)
