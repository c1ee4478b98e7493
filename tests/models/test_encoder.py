import re

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from hjepa_pl.functional.tokens import sincos_positions
from hjepa_pl.masks import MaskConfig, build_masks
from hjepa_pl.models.config import EncoderConfig
from hjepa_pl.models.encoder import VisionEncoder
from hjepa_pl.models.families import measure
from hjepa_pl.models.timm_vit import timm_recipe
from hjepa_pl.types import ConfigError, Counters

SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 32, "patch_size": 4}
KINDS = [
    {},
    {"position": "sincos"},
    {"position": "rope"},
    {"init_values": 0.1, "qk_norm": True},
    {"reg_tokens": 2},
    {"position": "rope", "reg_tokens": 2, "init_values": 0.1},
    {"position": "rope", "rope_theta": 7.0, "qk_norm": True},
    {"position": "rope_mixed"},
    {"position": "rope_mixed", "reg_tokens": 2, "rope_theta": 3.0},
    {"in_chans": 1, "drop_path_rate": 0.3},
]


@pytest.mark.parametrize("size", [(32, 32), (24, 40)], ids=str)
@pytest.mark.parametrize("extra", KINDS, ids=str)
def test_all_tokens_kept_equals_timm_by_outputs_and_loads_strictly(extra, size) -> None:
    config = EncoderConfig(**(SMALL | {"img_size": 32 if size == (32, 32) else size}), **extra)
    encoder = VisionEncoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():  # away from the initial zeros, so that every one shows
            parameter.add_(0.05 * torch.randn_like(parameter))
    name, kwargs = timm_recipe(config)
    reference = timm.create_model(name, **kwargs).eval()
    reference.load_state_dict(encoder.vit.state_dict(), strict=True)
    images = torch.randn(2, config.in_chans, *size)
    expected = reference.forward_features(images)[:, reference.num_prefix_tokens :]
    torch.testing.assert_close(encoder(images)["last"], expected, atol=1e-5, rtol=1e-5)
    every = torch.arange(size[0] * size[1] // 16).expand(2, -1)
    torch.testing.assert_close(encoder(images, every)["last"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (16, 64)], ids=str)
@pytest.mark.parametrize("extra", KINDS[:-1], ids=str)
def test_kept_tokens_equal_a_full_pass_that_masks_the_others(extra, size) -> None:
    """Attention over the kept tokens only, with their own positions: timm with the hidden keys masked out."""
    config = EncoderConfig(**(SMALL | {"img_size": size}), **extra)
    encoder = VisionEncoder(config).eval()
    images, keep = torch.randn(1, 3, *size), torch.tensor([[40, 3, 17, 60, 8]])
    reference = timm.create_model(timm_recipe(config)[0], **timm_recipe(config)[1]).eval()
    reference.load_state_dict(encoder.vit.state_dict())
    prefix = reference.num_prefix_tokens
    open_keys = torch.zeros(64 + prefix, dtype=torch.bool)
    open_keys[:prefix] = True
    open_keys[keep[0] + prefix] = True
    mask = torch.zeros(1, 1, 1, 64 + prefix).masked_fill(~open_keys, float("-inf")).expand(1, 1, 64 + prefix, -1)
    expected = reference.forward_features(images, attn_mask=mask)[:, prefix:][:, keep[0]]
    torch.testing.assert_close(encoder(images, keep)["last"], expected, atol=1e-5, rtol=1e-4)


def test_hidden_pixels_never_reach_the_output() -> None:
    encoder = VisionEncoder(EncoderConfig(**SMALL)).eval()
    images, keep = torch.randn(1, 3, 32, 32), torch.tensor([[0, 1, 2, 8, 9]])
    changed = images.clone()
    changed[..., 8:, 12:] = torch.nan
    assert torch.equal(encoder(images, keep)["last"], encoder(changed, keep)["last"])


def test_inner_depths_are_the_blocks_outputs_under_a_norm_of_their_own() -> None:
    encoder = VisionEncoder(EncoderConfig(**SMALL), inner=(1, 2)).eval()
    images = torch.randn(2, 3, 32, 32)
    found = encoder(images, blocks=(1, 2, "last"))
    raw = encoder.vit.forward_intermediates(images, indices=[0, 1], output_fmt="NLC", intermediates_only=True)
    for block, tokens in zip((1, 2), raw, strict=True):
        torch.testing.assert_close(found[block], torch.nn.functional.layer_norm(tokens, (48,)), atol=1e-5, rtol=1e-5)
    assert set(encoder(images, blocks=(1,))) == {1}


def test_no_block_beyond_the_deepest_asked_for_is_computed() -> None:
    encoder = VisionEncoder(EncoderConfig(**SMALL), inner=(1,)).eval()
    ran = []
    for number, block in enumerate(encoder.vit.blocks, start=1):
        block.register_forward_hook(lambda *_, n=number: ran.append(n))
    encoder(torch.randn(1, 3, 32, 32), blocks=(1,))
    assert ran == [1]


@pytest.mark.parametrize("position", ["learned", "sincos", "rope", "rope_mixed"])
def test_another_image_size_is_taken(position) -> None:
    encoder = VisionEncoder(EncoderConfig(**SMALL, position=position)).eval()
    assert encoder(torch.randn(2, 3, 16, 24))["last"].shape == (2, 24, 48)


@pytest.mark.parametrize("start", [32, (24, 40)], ids=str)
@pytest.mark.parametrize("size", [(48, 48), (16, 40), (40, 24)], ids=str)
@pytest.mark.parametrize("extra", [k for k in KINDS if "in_chans" not in k], ids=str)
def test_another_size_equals_the_timm_model_made_for_it(extra, size, start) -> None:
    """Tables, learned or sine-cosine, are resampled by timm's function; rotary angles are those of the new grid."""
    config = EncoderConfig(**(SMALL | {"img_size": start}), **extra)
    encoder = VisionEncoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.vit.parameters():
            if extra.get("position") != "sincos" or parameter is not encoder.vit.pos_embed:
                parameter.add_(0.05 * torch.randn_like(parameter))
    name, kwargs = timm_recipe(config)
    reference = timm.create_model(name, **(kwargs | {"img_size": size})).eval()
    state = encoder.vit.state_dict()
    if "pos_embed" in state:
        state["pos_embed"] = resample_abs_pos_embed(
            state["pos_embed"], [n // 4 for n in size], list(encoder.grid), num_prefix_tokens=extra.get("reg_tokens", 0)
        )
    reference.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, *size)
    expected = reference.forward_features(images)[:, reference.num_prefix_tokens :]
    torch.testing.assert_close(encoder(images)["last"], expected, atol=1e-5, rtol=1e-5)


def test_sincos_on_a_larger_grid_is_the_table_stretched_and_not_continued() -> None:
    encoder = VisionEncoder(EncoderConfig(**SMALL, position="sincos"))
    found = encoder._positions((8, 16))[0]
    assert (found - sincos_positions((8, 16), 48)).abs().max() > 0.5
    stretched = found.reshape(8, 16, 48)[:, 1:-1].unfold(1, 2, 2).mean(-1)  # pairs of columns, the ends aside
    between = encoder.vit.pos_embed[0].reshape(8, 8, 48).unfold(1, 2, 1).mean(-1)
    torch.testing.assert_close(stretched, between, atol=0.1, rtol=0)


def test_a_timm_name_takes_images_that_are_not_square() -> None:
    geometry = measure(EncoderConfig(name="vit_tiny_patch16_224", img_size=(32, 96)))
    assert geometry.grid == (2, 6)


@pytest.mark.parametrize("kind", ["multiblock", "random"])
@pytest.mark.parametrize("size", [(32, 64), (16, 64), (64, 24)], ids=str)
def test_masks_lie_on_a_grid_that_is_not_square(kind, size) -> None:
    rows, columns = size[0] // 4, size[1] // 4
    masks = build_masks(MaskConfig(kind=kind), (rows, columns), (1, 2), 0)
    for step in range(4):
        drawn = masks(Counters(0, step, torch.arange(64)))
        hidden = torch.zeros(64, rows * columns, dtype=torch.bool).scatter_(1, drawn.targets[0].flatten(1), True)
        assert not hidden.gather(1, drawn.context).any()
        coarse = torch.zeros(64, rows * columns // 4, dtype=torch.bool).scatter_(1, drawn.targets[1].flatten(1), True)
        # Each coarse cell is whole and hidden, and they cover what the fine cells cover.
        fine = coarse.reshape(64, rows // 2, columns // 2).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
        assert torch.equal(fine, hidden)
        assert hidden.any(0).all()  # every place of the grid is predicted in some image


def test_rope_sees_relative_positions_only() -> None:
    """The same patches on a shifted part of the grid give the same features: RoPE has no absolute position."""
    patch = torch.randn(1, 3, 16, 16)
    shifted = torch.zeros(2, 3, 32, 32)
    shifted[0, :, :16, :16], shifted[1, :, 12:28, 8:24] = patch[0], patch[0]
    rows, columns = torch.arange(4)[:, None], torch.arange(4)
    keep = torch.stack([(rows * 8 + columns).flatten(), ((rows + 3) * 8 + columns + 2).flatten()])
    for position, same in (("rope", True), ("rope_mixed", True), ("learned", False)):
        encoder = VisionEncoder(EncoderConfig(**SMALL, position=position)).eval()
        with torch.no_grad():
            for p in encoder.vit.blocks.parameters():
                p.add_(0.05 * torch.randn_like(p))
        first, second = encoder(shifted, keep)["last"]
        assert torch.allclose(first, second, atol=1e-4) is same


POSITIONS = ["learned", "sincos", "rope", "rope_mixed"]


@pytest.mark.parametrize("position", POSITIONS)
def test_null_has_no_gains_and_computes_what_gains_of_one_compute(position) -> None:
    plain = VisionEncoder(EncoderConfig(**SMALL, position=position, drop_path_rate=0.2)).eval()
    assert not [name for name in plain.state_dict() if "gamma" in name]
    scaled = VisionEncoder(EncoderConfig(**SMALL, position=position, drop_path_rate=0.2, init_values=1.0)).eval()
    gains = {name: x for name, x in scaled.state_dict().items() if "gamma" in name}
    assert len(gains) == 2 * 3
    scaled.load_state_dict(plain.state_dict() | gains, strict=True)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(plain(images)["last"], scaled(images)["last"])


@pytest.mark.parametrize("position", ["rope", "rope_mixed"])
def test_the_rotary_model_without_gains_is_timms_but_for_them(position) -> None:
    """The same start from the same seed, the same rotary base and settings: only LayerScale is left out."""
    shape = {k: v for k, v in SMALL.items() if k != "img_size"} | {"img_size": 32, "class_token": False}
    torch.manual_seed(5)
    theirs = timm.create_model(
        f"vit_small_patch16_{position}_224",
        num_classes=0,
        global_pool="avg",
        use_fc_norm=False,
        init_values=1.0,
        **shape,
    ).eval()
    torch.manual_seed(5)
    ours = VisionEncoder(EncoderConfig(**SMALL, position=position)).eval()
    expected = {name: x for name, x in theirs.state_dict().items() if "gamma" not in name}
    assert set(ours.vit.state_dict()) == set(expected)
    assert all(torch.equal(x, expected[name]) for name, x in ours.vit.state_dict().items())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images)["last"], theirs.forward_features(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("init_values", [None, 1e-5])
@pytest.mark.parametrize("reg_tokens", [0, 1])
@pytest.mark.parametrize("position", POSITIONS)
def test_the_residual_stream_is_in_32_bits(position, reg_tokens, init_values) -> None:
    config = EncoderConfig(**SMALL, position=position, reg_tokens=reg_tokens, init_values=init_values)
    encoder, seen = VisionEncoder(config, inner=(1,)), []
    for block in encoder.vit.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
        block.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for keep in (None, torch.arange(20).expand(2, -1)):
            encoder(torch.randn(2, 3, 32, 32), keep, blocks=(1, "last"))
    assert seen == [torch.float32] * (2 * 2 * 3)


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_layer_scale_at_zero_is_the_identity(position) -> None:
    encoder = VisionEncoder(EncoderConfig(**SMALL, init_values=1e-12, position=position), inner=(1, 2)).eval()
    found = encoder(torch.randn(1, 3, 32, 32), blocks=(1, 2))
    torch.testing.assert_close(found[1], found[2])


def test_layer_scale_adds_two_gains_a_block() -> None:
    encoder = VisionEncoder(EncoderConfig(**SMALL, init_values=1e-5))
    with_scale = sum(p.numel() for p in encoder.parameters())
    without = sum(p.numel() for p in VisionEncoder(EncoderConfig(**SMALL)).parameters())
    assert with_scale - without == 3 * 2 * 48


@pytest.mark.parametrize("position", ["learned", "rope", "rope_mixed"])
def test_checkpointing_changes_memory_and_not_gradients(position) -> None:
    images, kept = torch.randn(4, 3, 32, 32), {}
    gradients = []
    for every in (0, 1, 2):
        torch.manual_seed(1)
        extra = {"grad_checkpointing": every > 0, "checkpoint_every": max(every, 1), "position": position}
        encoder = VisionEncoder(EncoderConfig(**SMALL, **extra, drop_path_rate=0.5), inner=(1, 2)).train()
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        torch.manual_seed(2)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            loss = sum(x.square().sum() for x in encoder(images, blocks=(1, 2, "last")).values())
        kept[every] = saved
        loss.backward()
        gradients.append([p.grad for p in encoder.parameters()])
    assert kept[2] < kept[1] < 0.5 * kept[0]
    for a, b, c in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(a, c, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"img_size": 30, "patch_size": 4}, "img_size=30`: must be a multiple of encoder.patch_size=4; use 28 or 32."),
        (
            {"img_size": (30, 64), "patch_size": 4},
            "img_size=[30, 64]`: must be a multiple of encoder.patch_size=4; use [28, 64] or [32, 64].",
        ),
        (
            {"img_size": [32, 9], "patch_size": 4},
            "img_size=[32, 9]`: must be a multiple of encoder.patch_size=4; use [32, 8] or [32, 12].",
        ),
        (
            {"img_size": (32, 2), "patch_size": 4},
            "img_size=[32, 2]`: must be a multiple of encoder.patch_size=4; use [32, 4].",
        ),
        (
            {"img_size": (32, 32, 32)},
            "img_size=[32, 32, 32]`: must be a whole number >= 1 or a list of 2 whole numbers >= 1.",
        ),
        (
            {"img_size": (32, 0)},
            "img_size=[32, 0]`: must be a whole number >= 1 or a list of 2 whole numbers >= 1.",
        ),
        (
            {"name": "vit_tiny_patch16_224", "img_size": 40},
            "img_size=40`: must be a multiple of encoder.patch_size=16; use 32 or 48.",
        ),
        ({"pretrained": True}, "pretrained=true`: needs encoder.name, the model of timm; set it, or pretrained to a"),
        ({"pretrained": ""}, "pretrained=''`: must be true, false or the path of a file."),
        ({"name": "vit_smal_patch16_224"}, "name=vit_smal_patch16_224`: is not a timm model; use for example "),
        ({"name": "resnet18"}, "name=resnet18`: is not a plain vision transformer; use a vit_* model of timm."),
        (
            {"name": "vit_small_patch16_224", "size": "tiny"},
            "size=tiny`: has no effect with encoder.name=vit_small_patch16_224; remove it, or set it to null.",
        ),
        (
            {"name": "vit_small_patch16_224", "position": "rope"},
            "position=rope`: has no effect with encoder.name=vit_small_patch16_224; remove it, or set encoder.size",
        ),
        (
            {"size": "tiny", "embed_dim": 48, "depth": 3, "num_heads": 3},
            "size=tiny`: has no effect with encoder.embed_dim, depth and num_heads all set; remove it",
        ),
        ({"embed_dim": 50, "num_heads": 3}, "embed_dim=50`: must be a multiple of 3 (encoder.num_heads=3); use 51."),
        (
            {"embed_dim": 48, "num_heads": 8, "position": "rope"},
            "embed_dim=48`: must be a multiple of 32 (4 x encoder.num_heads=8 with RoPE); use 64.",
        ),
        (
            {"embed_dim": 50, "num_heads": 2, "position": "sincos"},
            "embed_dim=50`: must be a multiple of 4 with encoder.position=sincos.",
        ),
        (
            {"depth": 2, "grad_checkpointing": True, "checkpoint_every": 3},
            "checkpoint_every=3`: must be at most 2, the encoder's blocks.",
        ),
        (
            {"init_values": 0.0},
            "init_values=0`: must be a number > 0 or null; remove it to have no LayerScale, or use 1e-5.",
        ),
        ({"init_values": float("inf")}, "init_values=inf`: must be a number > 0 or null; remove it to have no"),
        (
            {"name": "eva02_enormous_patch14_clip_224", "init_values": 0.1},
            "init_values=0.1`: has no effect, timm's eva02_enormous_patch14_clip_224 has no LayerScale; remove it.",
        ),
        ({"depth": 0}, "depth=0`: must be a whole number >= 1 or null."),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1`: must be a number in [0, 1)."),
        ({"drop_path_rate": -0.1}, "drop_path_rate=-0.1`: must be a number in [0, 1)."),
        ({"reg_tokens": -1}, "reg_tokens=-1`: must be a whole number >= 0."),
    ],
)
def test_what_cannot_be_built_is_rejected_before_weights_are_made(settings, message) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"invalid `encoder.{message}")):
        measure(EncoderConfig(**settings))


def test_any_timm_vit_by_name() -> None:
    geometry = measure(EncoderConfig(name="vit_tiny_patch16_224", img_size=64))
    assert (geometry.grid, geometry.depth, geometry.embed_dim) == ((4, 4), 12, 192)
