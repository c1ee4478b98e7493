import math
import re

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hjepa_pl.models.config import EncoderConfig, PredictorConfig
from hjepa_pl.models.encoder import VisionEncoder
from hjepa_pl.models.predictor import Predictor
from hjepa_pl.models.rope import _complex_product, _real_product, axial_rotations, complex_is_faster, rotate
from hjepa_pl.models.timm_vit import timm_recipe
from hjepa_pl.types import ConfigError

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32, "patch_size": 4}


def test_rotation_turns_pairs_by_the_angle_of_their_axis() -> None:
    turn = axial_rotations((2, 3), 8, theta=10.0)
    assert turn.shape == (6, 4, 2)
    x = torch.randn(6, 8)
    turned = rotate(x, turn)
    for cell, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        for pair, angle in enumerate([column, column * 10**-0.5, row, row * 10**-0.5]):
            a, b = x[cell, 2 * pair : 2 * pair + 2].tolist()
            expected = [a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)]
            torch.testing.assert_close(turned[cell, 2 * pair : 2 * pair + 2], torch.tensor(expected))


def test_logits_depend_on_the_relative_position_only() -> None:
    turn = axial_rotations((8, 8), 16, theta=100.0).reshape(8, 8, 8, 2)
    q, k = torch.randn(16), torch.randn(16)
    logit = [(rotate(q, turn[r, c]) @ rotate(k, turn[r + 2, c + 3])).item() for r in range(5) for c in range(4)]
    assert max(logit) - min(logit) < 1e-5
    assert abs((rotate(q, turn[0, 0]) @ rotate(k, turn[3, 3])).item() - logit[0]) > 1e-2


def test_cells_lie_where_their_patches_lie() -> None:
    both = (axial_rotations((4, 4), 8, 100.0, cell) for cell in (1, 2))
    turn, coarse = (torch.view_as_complex(x) for x in both)
    corners = turn.reshape(4, 4, 4)[:2, :2].reshape(4, 4)
    torch.testing.assert_close(coarse[0].angle(), corners.angle().mean(0))


def test_complex_numbers_are_used_where_they_are_fast() -> None:
    assert [complex_is_faster(device, False) for device in ("cpu", "cuda", "mps", "xpu")] == [True, True, False, False]
    assert not any(complex_is_faster(device, True) for device in ("cpu", "cuda", "mps"))
    assert "aten::view_as_complex" in operators_of_an_encoder(position="rope")


@pytest.mark.parametrize("position", ["rope", "rope_mixed"])
def test_no_operator_is_complex_where_complex_numbers_do_not_pay(position, monkeypatch) -> None:
    monkeypatch.setattr("hjepa_pl.models.rope.complex_is_faster", lambda *_: False)
    assert not [name for name in operators_of_an_encoder(position=position) if "complex" in name or "polar" in name]


def operators_of_an_encoder(**extra) -> set[str]:
    """Return the operators of a step of encoder and rotary predictor, both ways."""
    encoder = VisionEncoder(EncoderConfig(**SMALL, reg_tokens=1, **extra))
    predictor = Predictor(PredictorConfig(embed_dim=24, depth=2, num_heads=3, position="rope"), 48, (8, 8), (1,))
    keep = torch.arange(20).expand(2, -1)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        context = encoder(torch.randn(2, 3, 32, 32), keep)["last"]
        predictor(context, keep, (torch.arange(30, 36).expand(2, 1, -1),))[0].square().mean().backward()
    return {event.name for event in found.events()}


def test_the_real_form_and_the_complex_one_agree_in_values_and_gradients() -> None:
    results = []
    for product in (_complex_product, _real_product):
        torch.manual_seed(0)
        pairs, turn = torch.randn(2, 5, 1, 3, 4, 2).requires_grad_(), torch.randn(2, 5, 1, 1, 4, 2).requires_grad_()
        out = product(pairs, turn)
        results.append([out, *torch.autograd.grad(out.square().sum(), (pairs, turn))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_mixed_frequencies_is_not_sorted() -> None:
    assert not {"aten::index_put_", "aten::_index_put_impl_"} & operators_of_an_encoder(position="rope_mixed")


@pytest.mark.parametrize("position", ["rope", "rope_mixed"])
def test_the_timm_model_inside_still_runs_by_itself(position) -> None:
    encoder = VisionEncoder(EncoderConfig(**SMALL, position=position, reg_tokens=1)).eval()
    images = torch.randn(2, 3, 32, 32)
    tokens = encoder.vit.forward_features(images)[:, 1:]
    torch.testing.assert_close(tokens, encoder(images)["last"], atol=1e-5, rtol=1e-5)


def test_mixed_frequencies_learn() -> None:
    encoder = VisionEncoder(EncoderConfig(**SMALL, position="rope_mixed"))
    encoder(torch.randn(2, 3, 32, 32), torch.arange(20).expand(2, -1))["last"].square().mean().backward()
    assert encoder.vit.rope.freqs.grad.abs().min() > 0


def test_fixed_rotations_are_made_once_for_a_grid_and_learned_ones_each_time() -> None:
    images = torch.randn(2, 3, 32, 32)
    for position, times in (("rope", 2), ("rope_mixed", 4)):
        encoder = VisionEncoder(EncoderConfig(**SMALL, position=position))
        calls = []
        made = encoder.vit.rope.get_embed
        encoder.vit.rope.get_embed = lambda made=made, calls=calls, **k: calls.append(k) or made(**k)
        with torch.inference_mode():
            encoder(images)
        for x in (images, images, images[..., :16]):
            encoder(x, torch.arange(10).expand(2, -1))["last"].sum().backward()
        assert len(calls) == times
    encoder = VisionEncoder(EncoderConfig(**SMALL, position="rope"))
    before = encoder(images)["last"]
    torch.testing.assert_close(encoder.double()(images.double())["last"].float(), before, atol=1e-4, rtol=1e-4)


def test_theta_is_the_base_of_the_angles() -> None:
    encoder = VisionEncoder(EncoderConfig(**SMALL, position="rope", rope_theta=7.0))
    assert timm_recipe(encoder.config)[1]["rope_temperature"] == 7.0
    turn = encoder._block_rotations((8, 8), None)[0][0].squeeze()
    torch.testing.assert_close(turn, axial_rotations((8, 8), 16, 7.0), atol=1e-6, rtol=1e-6)


def predict(shift: int, **extra) -> torch.Tensor:
    """Predict a cell two columns right of a 3 x 3 context, all moved by `shift` rows and columns."""
    torch.manual_seed(3)
    predictor = Predictor(PredictorConfig(embed_dim=24, depth=2, num_heads=3, **extra), 48, (8, 8), (1, 2))
    with torch.no_grad():
        for p in predictor.parameters():
            p.add_(0.1 * torch.randn_like(p))
    rows = torch.arange(3) + shift
    index = (rows[:, None] * 8 + rows).flatten()[None]
    fine, coarse = shift * 8 + shift + 4, (shift // 2) * 4 + shift // 2 + 2
    context = torch.randn(1, 9, 48)
    return torch.cat(predictor(context, index, (torch.tensor([[[fine]]]), torch.tensor([[[coarse]]]))), dim=1)


@pytest.mark.parametrize("attention", ["self", "cross"])
def test_the_rotary_predictor_sees_relative_positions_only(attention) -> None:
    torch.testing.assert_close(
        predict(0, position="rope", attention=attention), predict(2, position="rope", attention=attention)
    )
    assert not torch.allclose(predict(0, attention=attention), predict(2, attention=attention), atol=1e-3)
    assert not torch.allclose(
        predict(0, position="rope", attention=attention),
        predict(0, position="rope", rope_theta=4.0, attention=attention),
        atol=1e-4,
    )


def test_rotations_survive_a_change_of_dtype() -> None:
    predictor = Predictor(PredictorConfig(embed_dim=24, depth=1, num_heads=3, position="rope"), 48, (4, 4), (1,))
    inputs = (torch.randn(1, 4, 48), torch.arange(4)[None], (torch.tensor([[[9, 12]]]),))
    before = predictor(*inputs)[0]
    assert torch.equal(before, predictor.to(torch.float32)(*inputs)[0])


@pytest.mark.parametrize("position", ["sincos", "rope"])
@pytest.mark.parametrize("attention", ["self", "cross"])
def test_the_predictors_residual_stream_is_in_32_bits(attention, position) -> None:
    config = PredictorConfig(embed_dim=24, depth=2, num_heads=3, position=position, attention=attention)
    predictor, seen = Predictor(config, 48, (4, 4), (1,)), []
    for block in predictor.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predictor(torch.randn(1, 4, 48), torch.arange(4)[None], (torch.tensor([[[9, 12]]]),))
    assert seen == [torch.float32] * 2


@pytest.mark.parametrize("position", ["sincos", "rope"])
@pytest.mark.parametrize("attention", ["self", "cross"])
def test_layer_scale_in_the_predictor(attention, position) -> None:
    """At (nearly) zero every block is the identity, and it adds two gains of the width a block."""
    options = {"embed_dim": 24, "depth": 2, "num_heads": 3, "attention": attention, "position": position}
    plain = Predictor(PredictorConfig(**options), 48, (4, 4), (1,))
    scaled = Predictor(PredictorConfig(**options, init_values=1e-12), 48, (4, 4), (1,))
    added = sum(p.numel() for p in scaled.parameters()) - sum(p.numel() for p in plain.parameters())
    assert added == 2 * 2 * 24
    index, targets = torch.arange(8)[None], torch.tensor([[[9, 12]]])
    (out,) = scaled(torch.randn(1, 8, 48), index, (targets,))
    query, place = scaled._queries(0, targets)
    expected = query if position == "rope" else query + place
    torch.testing.assert_close(out, scaled.heads[0](scaled.norm(expected[0])))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: EncoderConfig(rope_theta=10.0),
            "encoder.rope_theta=10`: has no effect with encoder.position=learned; set position to rope",
        ),
        (
            lambda: EncoderConfig(name="vit_small_patch16_rope_224", rope_theta=9.0),
            "encoder.rope_theta=9`: has no effect with encoder.name=vit_small_patch16_rope_224; remove it",
        ),
        (
            lambda: EncoderConfig(position="rope", rope_theta=0.5),
            "encoder.rope_theta=0.5`: must be a number > 1 or null.",
        ),
        (
            lambda: PredictorConfig(rope_theta=10.0),
            "predictor.rope_theta=10`: has no effect with predictor.position=sincos",
        ),
        (
            lambda: PredictorConfig(position="rope", embed_dim=20, num_heads=2),
            "predictor.embed_dim=20`: must be a multiple of 8 (4 x predictor.num_heads=2) with predictor.position=",
        ),
        (
            lambda: PredictorConfig(init_values=0.0),
            "predictor.init_values=0`: must be a number > 0 or null; remove it to have no LayerScale, or use 1e-5.",
        ),
        (
            lambda: EncoderConfig(checkpoint_every=2),
            "encoder.checkpoint_every=2`: has no effect with encoder.grad_checkpointing=false",
        ),
        (
            lambda: PredictorConfig(checkpoint_every=2),
            "predictor.checkpoint_every=2`: has no effect with predictor.grad_checkpointing=false",
        ),
        (
            lambda: PredictorConfig(grad_checkpointing=True, checkpoint_every=9),
            "predictor.checkpoint_every=9`: must be at most predictor.depth=4.",
        ),
    ],
)
def test_invalid_settings(make, message) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"invalid `{message}")):
        make()
