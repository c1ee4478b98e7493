import copy
import zlib

import pytest
import torch
import torch.nn.functional as F

from hjepa_pl.losses.prediction import position_baseline, prediction_loss
from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.types import ConfigError
from tests.conftest import SMALL_PREDICTOR, SMALL_PROJECTOR, TINY, make_batch

TOKENS = [{"cell": 1}, {"cell": 2}]


def test_every_trained_parameter_has_a_gradient_and_no_target_one_has(tiny_module) -> None:
    module = tiny_module()
    loss, _ = module.compute(make_batch())
    loss.backward()
    for name, parameter in module.named_parameters():
        if name.startswith("target_encoder"):
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    groups = module.configure_optimizers().param_groups
    optimized = {id(p) for g in groups for p in g["params"]}
    assert optimized == {id(p) for n, p in module.named_parameters() if not n.startswith("target_encoder")}


def test_the_target_shares_no_storage_and_no_noise_with_the_context(tiny_module) -> None:
    module = tiny_module(encoder=TINY | {"drop_path_rate": 0.5})
    mine = {p.data_ptr() for p in module.context_encoder.parameters()}
    assert not mine & {p.data_ptr() for p in module.target_encoder.parameters()}
    module.train()
    assert module.context_encoder.training
    assert not any(m.training for m in module.target_encoder.modules())


def test_level_targets_equal_a_slow_plain_python_computation(tiny_module) -> None:
    module = tiny_module(levels=[{"block": 2, "cell": 2}, {"cell": 1}, {"cell": 4}])
    images = make_batch(images=2).views[0]
    maps = module.tokens.target_maps(images)
    vit = module.target_encoder.vit
    raw = vit.forward_intermediates(images, indices=[1], output_fmt="NLC", intermediates_only=True)[0]
    last = vit.forward_features(images)
    for level, tokens, cell, found in zip(("b2", "last", "last"), (raw, last, last), (2, 1, 4), maps, strict=True):
        for image in range(2):
            for y in range(8 // cell):
                for x in range(8 // cell):
                    total = torch.zeros(48)
                    for i in range(cell):
                        for j in range(cell):
                            token = tokens[image, (y * cell + i) * 8 + x * cell + j]
                            if level == "b2":
                                token = (token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt()
                            total += token / cell**2
                    expected = (total - total.mean()) / (total.var(correction=0) + 1e-5).sqrt()
                    torch.testing.assert_close(found[image, y * (8 // cell) + x], expected, atol=2e-5, rtol=1e-4)


def test_losses_are_those_of_the_definition(tiny_module) -> None:
    """One step written out by hand: masks, targets, predictions, views, SIGReg, weights."""
    module = tiny_module(levels=[{"cell": 1, "weight": 0.5}, {"cell": "image", "weight": 2.0}])
    batch = make_batch()
    loss, record = module.compute(batch)
    terms = record.terms
    masks = module.masks(batch.counters)
    tokens = F.layer_norm(module.target_encoder.vit.forward_features(batch.views[0]), (48,))
    index = masks.targets[0].flatten(1)
    target = torch.stack([tokens[b, index[b]] for b in range(8)])
    context = module.context_encoder(batch.views[0], masks.context)["last"]
    prediction = module.predictor(context, masks.context, masks.targets)[0]
    assert float(terms["last_c1"]) == pytest.approx(float(F.smooth_l1_loss(prediction, target)), rel=1e-5)
    pooled = torch.cat([module.context_encoder.vit.forward_features(v).mean(1) for v in batch.views])
    z = module.projector(pooled).reshape(2, 8, -1)
    assert float(terms["image"]) == pytest.approx(float(((z - z.mean(0)) ** 2).mean()), rel=1e-4)
    # The baseline: each position's mean over the other seven images.
    others = (tokens.sum(0) - tokens) / 7
    baseline = F.smooth_l1_loss(others, tokens)
    weighted = 0.5 * terms["last_c1"] / baseline + 2.0 * terms["image"] + 5.0 * terms["sigreg_image"]
    assert float(loss) == pytest.approx(float(weighted), rel=1e-6)
    assert float(terms["sigreg_image_weighted"]) == pytest.approx(5 * float(terms["sigreg_image"]), rel=1e-6)


def test_ema_is_the_formula_to_the_bit_and_copies_buffers(tiny_module) -> None:
    module = tiny_module()
    with torch.no_grad():
        for p in module.context_encoder.parameters():
            p.add_(torch.randn_like(p))
    before = copy.deepcopy(module.target_encoder.state_dict())
    module.ema.update(module.context_encoder, module.target_encoder, 0.97)
    for name, context in module.context_encoder.named_parameters():
        expected = before[name] * 0.97 + context.detach() * (1.0 - 0.97)
        assert torch.equal(module.target_encoder.get_parameter(name), expected), name


def test_ijepa_and_lejepa_are_special_cases(tiny_module) -> None:
    ijepa = tiny_module(levels=[{"block": "last", "cell": 1}], level_scale="raw")
    assert (ijepa.projector, ijepa.regularizers) == (None, ())
    terms = ijepa.compute(make_batch(views=1))[1].terms
    assert set(terms) == {"last_c1"}
    lejepa = HJEPALightningModule(encoder=TINY, levels=[{"cell": "image"}], projector=SMALL_PROJECTOR)
    assert (lejepa.target_encoder, lejepa.predictor, lejepa.ema, lejepa.masks) == (None, None, None, None)
    terms = lejepa.compute(make_batch())[1].terms
    assert set(terms) == {"image", "sigreg_image", "sigreg_image_weighted"}


def test_learned_rotary_frequencies_are_not_decayed(tiny_module) -> None:
    module = tiny_module(encoder=TINY | {"position": "rope_mixed"})
    decayed = {id(p) for p in module.configure_optimizers().param_groups[0]["params"]}
    assert id(module.context_encoder.vit.rope.freqs) not in decayed
    assert id(module.context_encoder.vit.blocks[0].attn.qkv.weight) in decayed


def test_presets_are_the_lists_that_they_name(tiny_module) -> None:
    batch = make_batch()
    lists = {
        "flat": [{"cell": 1}],
        "three": [{"cell": 1, "weight": 0.1}, {"cell": 2, "weight": 0.1}, {"cell": "image", "masked_view": "replace"}],
    }
    for word, levels in lists.items():
        parts = {"encoder": TINY, "predictor": SMALL_PREDICTOR}
        parts |= {"projector": SMALL_PROJECTOR} if word == "three" else {}
        losses = []
        for given in (word, levels):
            torch.manual_seed(0)
            module = HJEPALightningModule(levels=given, **parts)
            assert module.hparams["levels"] == HJEPALightningModule(levels=levels, **parts).hparams["levels"]
            losses.append(module.compute(batch)[0])
        assert torch.equal(*losses)


def test_a_position_only_predictor_has_a_relative_loss_of_one() -> None:
    """Whatever share of the target the position explains, predicting each position's mean costs its baseline."""
    for share in (0.0, 0.5, 0.9):
        position, image = torch.randn(1, 64, 32), torch.randn(1024, 64, 32)
        target, seen = F.layer_norm(share**0.5 * position + (1 - share) ** 0.5 * image, (32,)).chunk(2)
        for kind in ("smooth_l1", "mse", "cosine"):
            loss = prediction_loss(seen.mean(0).expand_as(target), target, kind)
            assert float(loss / position_baseline(target, kind)) == pytest.approx(1.0, abs=0.01)


def test_the_baseline_of_targets_that_are_all_alike_has_a_floor() -> None:
    target = F.layer_norm(torch.randn(1, 64, 32), (32,)).expand(8, -1, -1)
    assert float(position_baseline(target, "mse")) == pytest.approx(0.02, rel=1e-3)


def test_the_baseline_of_one_image_is_the_loss_of_zeros(tiny_module) -> None:
    target = F.layer_norm(torch.randn(1, 64, 32), (32,))
    assert float(position_baseline(target, "mse")) == pytest.approx(1.0, rel=1e-3)


def test_a_masked_view_replaces_a_full_pass_and_pulls_towards_the_full_views(tiny_module) -> None:
    """By hand: the visible tokens' mean is projected beside the second view's, and regressed to that one."""
    level = {"cell": "image", "masked_view": "replace"}
    module, batch = tiny_module(levels=[{"cell": 1}, level]), make_batch()
    terms = module.compute(batch)[1].terms
    masks = module.masks(batch.counters)
    pooled = [
        module.context_encoder(batch.views[0], masks.context)["last"].mean(1),
        module.context_encoder(batch.views[1])["last"].mean(1),
    ]
    masked, full = module.projector(torch.cat(pooled)).chunk(2)
    assert float(terms["image"]) == pytest.approx(float((masked - full).square().mean() / 2), rel=1e-4)


BASE = {"levels": [{"cell": 1}, {"cell": 2}, {"cell": "image"}]}
VICREG = {"regularizers": [{"kind": "vicreg"}]}
NTXENT = {"regularizers": [{"kind": "sigreg"}, {"kind": "ntxent"}]}
CHANGES = {
    "levels weight": {"levels": [{"cell": 1, "weight": 2.0}, {"cell": 2}, {"cell": "image"}]},
    "levels block": {"levels": [{"cell": 1, "block": 2}, {"cell": 2}, {"cell": "image"}]},
    "prediction": {"prediction": "mse"},
    "level scale": {"level_scale": "raw"},
    "instance norm": {"target_norm": "instance"},
    "batch norm": {"target_norm": "batch"},
    "target blocks": {"target_blocks": 2},
    "masked view": {"levels": [{"cell": 1}, {"cell": 2}, {"cell": "image", "masked_view": "add"}]},
    "masked view instead": {"levels": [{"cell": 1}, {"cell": 2}, {"cell": "image", "masked_view": "replace"}]},
    "cosine": {"prediction": "cosine"},
    "random masks": {"masks": {"kind": "random"}},
    "inverse block masks": {"masks": {"kind": "inverse_block"}},
    "hierarchical masks": {"masks": {"kind": "hierarchical"}},
    "several masks": {"masks": {"per_image": 2}},
    "num_targets": {"masks": {"num_targets": 1}},
    "target_scale": {"masks": {"target_scale": [0.05, 0.07]}},
    "max_visible": {"masks": {"max_visible": 0.5}},
    "separate": {"predictor": SMALL_PREDICTOR | {"targets": "separate"}},
    "cross": {"predictor": SMALL_PREDICTOR | {"attention": "cross"}},
    "fused": {
        "predictor": SMALL_PREDICTOR | {"context": "fused"},
        "levels": [{"block": 1}, {"cell": 2}, {"cell": "image"}],
    },
    "vicreg": VICREG,
    "vicreg factors": {"regularizers": [{"kind": "vicreg", "covariance": 7.0}]},
    "token sigreg": {"regularizers": [{"kind": "sigreg"}, {"kind": "sigreg", "stream": "tokens"}]},
    "token vicreg": {"regularizers": [{"kind": "sigreg"}, {"kind": "vicreg", "stream": "tokens"}]},
    "sigreg weight": {"regularizers": [{"kind": "sigreg", "weight": 2.0}]},
    "slices": {"regularizers": [{"kind": "sigreg", "num_slices": 16}]},
    "knots": {"regularizers": [{"kind": "sigreg", "knots": 5}]},
    "projector": {"projector": SMALL_PROJECTOR | {"hidden_layers": 1}},
    "seed": {"seed": 4},
    "rope": {"encoder": TINY | {"position": "rope"}},
    "rope mixed": {"encoder": TINY | {"position": "rope_mixed"}},
    "rope theta": {"encoder": TINY | {"position": "rope", "rope_theta": 5.0}},
    "predictor rope": {"predictor": SMALL_PREDICTOR | {"position": "rope"}},
    "predictor layer scale": {"predictor": SMALL_PREDICTOR | {"init_values": 0.1}},
    "sincos": {"encoder": TINY | {"position": "sincos"}},
    "layer scale": {"encoder": TINY | {"init_values": 0.1}},
    "registers": {"encoder": TINY | {"reg_tokens": 2}},
    "qk_norm": {"encoder": TINY | {"qk_norm": True}},
    "drop path": {"encoder": TINY | {"drop_path_rate": 0.4}},
    "pairwise": {"levels": [{"cell": 1}, {"cell": 2}, {"cell": "image", "compare": "pairwise"}]},
    "image block": {"levels": [{"cell": 1}, {"cell": 2}, {"cell": "image", "block": 1}]},
    "no average": {"ema": None, "experimental": True},
    "projector norm": {"projector": SMALL_PROJECTOR | {"norm": "layer"}},
    "linear projector": {"projector": {"hidden_layers": 0, "out_dim": 16}},
    "ntxent": NTXENT,
    "ntxent temperature": {"regularizers": [{"kind": "sigreg"}, {"kind": "ntxent", "temperature": 0.5}]},
    "hard negatives": {"regularizers": [{"kind": "sigreg"}, {"kind": "ntxent", "hard_negatives": 1.0}]},
    "t_max": {"regularizers": [{"kind": "sigreg", "t_max": 2.0}]},
    "level sigreg": {"regularizers": [{"kind": "sigreg"}, {"kind": "sigreg", "stream": "last_c2"}]},
    "level vicreg": {"regularizers": [{"kind": "sigreg"}, {"kind": "vicreg", "stream": "last_c1"}]},
    "compare none": VICREG | {"levels": [{"cell": 1}, {"cell": 2}, {"cell": "image", "compare": "none"}]},
}
AGAINST = {
    "rope theta": "rope", "ntxent temperature": "ntxent", "hard negatives": "ntxent", "vicreg factors": "vicreg",
    "compare none": "vicreg",
}  # fmt: skip
"""What a change is compared with, where that is not the base."""


def gradient_of(factory, settings) -> torch.Tensor:
    torch.manual_seed(0)
    module = factory(**(BASE | settings)).train()
    with torch.no_grad():
        for name, p in module.named_parameters():  # same weights whatever was drawn on the way
            if name.endswith("pos_embed") and not module.context_encoder.vit.pos_embed.requires_grad:
                continue  # the fixed table is what position 'sincos' is
            own = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            p.copy_(0.1 * torch.randn(p.shape, generator=own) + (1.0 if "norm" in name and p.ndim == 1 else 0.0))
    torch.manual_seed(1)
    loss, _ = module.compute(make_batch())
    loss.backward()
    return module.context_encoder.vit.patch_embed.proj.weight.grad


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_the_gradient(tiny_module, name) -> None:
    """No silent no-op: a key that leaves the gradient as it was does nothing."""
    without = CHANGES[AGAINST[name]] if name in AGAINST else {}
    assert not torch.equal(gradient_of(tiny_module, CHANGES[name]), gradient_of(tiny_module, without))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": []}, r"invalid `levels=\[\]`: must hold at least one level"),
        ({"levels": [{"cell": 1}, {"cell": 1}]}, "invalid `levels`: {block: last, cell: 1} is listed twice"),
        ({"levels": [{"block": 3}]}, "invalid `levels.block=3`: must be 1 to 2, or last"),
        ({"levels": [{"block": 0}]}, "invalid `levels.block=0`: must be a whole number >= 1 or last"),
        ({"levels": [{"cell": 3}]}, "invalid `levels.cell=3`: must divide the grid of 8 x 8 patches; use 1, 2 or 4."),
        ({"levels": [{"cell": 8}]}, "leaves fewer than|has no room for a target block|must divide the grid"),
        ({"levels": [{"cell": 1, "weight": -1.0}]}, "invalid `levels.weight=-1`: must be a number > 0; remove"),
        ({"levels": [{"cell": 1, "weight": 0}]}, "invalid `levels.weight=0`: must be a number > 0"),
        ({"levels": [{"cell": "image", "block": 1}]}, "invalid `levels.block=1`: later blocks get no gradient"),
        (
            {"levels": [{"cell": 1}, {"cell": "image", "block": 3}]},
            r"invalid `levels.block=3`: must be 1 to 2, or last \(image level\)",
        ),
        ({"levels": [{"cell": 1, "compare": "pairwise"}]},
         "invalid `levels.compare=pairwise`: has no effect with levels.cell=1"),
        ({"levels": [{"cell": "image", "compare": "none"}]}, "invalid `levels.compare=none`: no term compares views"),
        (
            {
                "levels": [{"cell": "image", "compare": "none"}],
                "regularizers": [{"kind": "vicreg", "invariance": 0.0}],
            },
            "invalid `levels.compare=none`: no term compares views",
        ),
        (
            {
                "levels": [{"cell": "image", "compare": "none", "weight": 0.5}],
                "regularizers": [{"kind": "vicreg"}],
            },
            "invalid `levels.weight=0.5`: has no effect with levels.compare=none",
        ),
        (
            {"regularizers": [{"kind": "ntxent"}]},
            "invalid `levels.compare=mean`: projections under ntxent alone, .* shrink to zero",
        ),
        (
            {"regularizers": [{"kind": "sigreg"}, {"kind": "sigreg", "stream": "last_c4"}]},
            "invalid `regularizers.stream=last_c4`: must be image or last_c1 or last_c2 or tokens in this model",
        ),
        ({"ema": None}, "invalid `ema=null`: token levels whose targets get a gradient collapse; remove it, or"),
        ({"experimental": True}, "invalid `experimental=true`: has no effect with ema; remove it"),
        (
            {"levels": [{"cell": "image"}], "experimental": True},
            "invalid `experimental=true`: has no effect without token levels; remove it",
        ),
        (
            {"levels": [{"cell": "image"}], "experimental": True, "ema": None},
            "invalid `experimental=true`: has no effect without token levels; remove it",
        ),
        (
            {"ema": None, "experimental": True, "pyramid": {}, "levels": [{"cell": 1}, {"cell": 2}]},
            "invalid `pyramid`: needs a target encoder",
        ),
        ({"levels": [{"cell": "picture"}]}, "invalid `levels.cell=picture`: must be a whole number >= 1 or image"),
        (
            {"regularizers": []},
            "invalid `regularizers`: the image level's projections collapse without a term on stream image",
        ),
        (
            {"levels": TOKENS, "regularizers": [{"kind": "sigreg"}]},
            "invalid `regularizers.kind=sigreg`: stream image has no projector without an image level",
        ),
        ({"levels": TOKENS, "projector": {"out_dim": 8}}, "invalid `projector`: has no effect without an image level"),
        (
            {"levels": [{"cell": "image"}], "ema": {"momentum": 0.9}},
            "invalid `ema`: has no effect without a token level",
        ),
        (
            {"levels": [{"cell": "image"}], "prediction": "mse"},
            "invalid `prediction=mse`: has no effect without a token level",
        ),
        ({"prediction": "l2"}, "invalid `prediction=l2`: must be smooth_l1, mse or cosine, or the import path of"),
        ({"predictor": {"context": "fused"}}, "invalid `predictor.context=fused`: has one depth to fuse"),
        (
            {"predictor": SMALL_PREDICTOR | {"targets": "separate"}, "masks": {"num_targets": 1}},
            "invalid `predictor.targets=separate`: has no effect with one target block",
        ),
        (
            {"encoder": TINY | {"depth": 1, "drop_path_rate": 0.2}},
            "invalid `encoder.drop_path_rate=0.2`: has no effect with one block",
        ),
        (
            {"encoder": TINY | {"grad_checkpointing": True, "checkpoint_every": 4}},
            "checkpoint_every=4`: must be at most 3, the encoder's blocks",
        ),
        ({"levels": None}, "invalid `levels=null`: must be flat or three, or a list of levels"),
        ({"levels": "four"}, "invalid `levels=four`: must be flat or three, or a list of levels"),
        (
            {"levels": [{"cell": 1, "masked_view": "add"}]},
            "invalid `levels.masked_view=add`: has no effect with levels.cell=1",
        ),
        (
            {"levels": [{"cell": "image", "masked_view": "add"}]},
            "invalid `levels.masked_view=add`: has no effect without a token level",
        ),
        ({"level_scale": "none"}, "invalid `level_scale=none`: must be baseline or raw"),
        ({"predictor": {"embed_dim": 30}}, "invalid `predictor.embed_dim=30`: must be a multiple of 4"),
        ({"encoder": TINY | {"embed_dims": 3}}, "encoder does not accept 'embed_dims'; its keys are size, name"),
        ({"encoder": TINY | {"depth": "three"}}, "invalid `encoder.depth=three`: must be a whole number >= 1 or null"),
        ({"ema": {"momentum": 1.0}}, r"invalid `ema.momentum=1`: must be a number in \[0, 1\)"),
        ({"ema": {"momentum": 0.99, "momentum_end": 0.9}}, "`ema.momentum_end=0.9`: must be >= ema.momentum=0.99"),
        ({"optimizer": {"lr": -1.0}}, "invalid `optimizer.lr=-1`: must be a number > 0"),
        (
            {"optimizer": {"min_lr": 1e-5, "min_lr_ratio": 0.1}},
            "invalid `optimizer.min_lr_ratio=0.1`: cannot be combined with optimizer.min_lr; remove one",
        ),
        ({"optimizer": {"betas": [0.9, 1.0]}}, r"invalid `optimizer.betas=\[0.9, 1\]`: must be a list of 2"),
        ({"time_budget": "8 hours"}, "invalid `time_budget=8 hours`: must be \"HH:MM:SS\" in quotes"),
        ({"time_budget": "00:00:00"}, "invalid `time_budget=00:00:00`: must be longer than 0:00:00"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_one_sentence(tiny_module, settings, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tiny_module(**settings)
    assert "\n" not in str(caught.value)


def test_settings_survive_a_round_trip_as_plain_values(tiny_module) -> None:
    module = tiny_module(levels=[{"block": 1}, {"cell": "image"}])
    again = HJEPALightningModule(**module.hparams)
    assert again.hparams == module.hparams
    assert again.load_state_dict(module.state_dict()) is not None


def test_encode_is_the_judged_networks_mean_token(tiny_module) -> None:
    module = tiny_module().eval()
    images = make_batch(images=3).views[0]
    expected = module.target_encoder.vit.forward_features(images)
    torch.testing.assert_close(module.encode_tokens(images), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(module.encode(images), expected.mean(1), atol=1e-5, rtol=1e-5)


def test_without_an_average_the_targets_have_a_gradient_and_the_online_encoder_is_judged(tiny_module) -> None:
    module = tiny_module(levels=[{"cell": 1}], ema=None, experimental=True).train()
    assert module.target_encoder is None
    assert module.ema is None
    assert module.encoder is module.context_encoder
    images = make_batch(views=1).views[0]
    (target,) = module.tokens.target_maps(images)
    assert target.requires_grad
    torch.testing.assert_close(
        target, F.layer_norm(module.context_encoder(images)["last"], (48,)), rtol=1e-5, atol=1e-5
    )
    assert module.compute(make_batch(views=1))[1].levels["last_c1"].target_map.requires_grad is False


def test_the_image_level_reads_the_block_that_it_names(tiny_module) -> None:
    module = tiny_module(levels=[{"cell": 1}, {"cell": "image", "block": 2}])
    batch = make_batch()
    with torch.no_grad():
        record = module.compute(batch)[1]
        tokens = [module.context_encoder(v, blocks=(2,))[2].mean(1) for v in batch.views]
        z = module.projector(torch.cat(tokens)).unflatten(0, (2, -1))
    assert float(record.terms["image"]) == pytest.approx(float((z - z.mean(0)).square().mean()), rel=1e-4)
    module.compute(batch)[1].terms["image"].backward()
    blocks = module.context_encoder.vit.blocks
    assert blocks[1].mlp.fc1.weight.grad.abs().sum() > 0
    assert blocks[2].mlp.fc1.weight.grad is None


@pytest.mark.parametrize("stream", ["tokens", "last_c1", "last_c2"])
def test_a_regulariser_of_a_stream_reaches_what_makes_it(tiny_module, stream) -> None:
    module = tiny_module(levels=[{"cell": 1}, {"cell": 2}], regularizers=[{"kind": "sigreg", "stream": stream}])
    module.compute(make_batch(views=1))[1].terms[f"sigreg_{stream}"].backward()
    assert module.context_encoder.vit.blocks[0].mlp.fc1.weight.grad.abs().sum() > 0
    heads = [head.weight.grad is not None for head in module.predictor.heads]
    assert heads == [stream == "last_c1", stream == "last_c2"]
