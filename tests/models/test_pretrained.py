"""Starts from files that timm models wrote, and from timm's own downloads (of a file:// address)."""

import dataclasses
import warnings

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import _registry

from hjepa_pl import HJEPALightningModule
from hjepa_pl.functional.tokens import sincos_positions
from hjepa_pl.models.config import EncoderConfig
from hjepa_pl.models.encoder import VisionEncoder
from hjepa_pl.models.families import measure
from hjepa_pl.models.pretrained import without_pretrained
from hjepa_pl.models.timm_vit import timm_recipe
from hjepa_pl.types import ConfigError
from tests.conftest import SMALL_PREDICTOR, SMALL_PROJECTOR
from tests.functional.test_tokens import mae_table

SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 32, "patch_size": 4}
SIZES = {k: v for k, v in SMALL.items() if k != "img_size"}


def timm_model(name="vit_small_patch16_224", **settings):
    given = {"class_token": False, "num_classes": 0, "global_pool": "avg", "fc_norm": False}
    model = timm.create_model(name, **({"img_size": 32} | SIZES | given | settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def saved(path, model, **changes):
    state = {k: v.clone() for k, v in model.state_dict().items()} | changes
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if path.suffix == ".pth" else state, path)
    return str(path)


def load(path, **settings):
    return VisionEncoder(EncoderConfig(pretrained=path, **(SMALL | settings))).vit.state_dict()


def same(ours, theirs, but=()):
    assert set(ours) == set(theirs)
    for key in set(ours) - set(but):
        assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_the_weights_are_those_of_the_file_to_the_bit(tmp_path, suffix) -> None:
    model = timm_model()
    same(load(saved(tmp_path / f"vit{suffix}", model)), model.state_dict())


@pytest.mark.parametrize(
    ("settings", "timms"),
    [
        ({"init_values": 0.1, "qk_norm": True}, {"init_values": 1.0, "qk_norm": True}),
        ({"reg_tokens": 2}, {"reg_tokens": 2}),
        ({"in_chans": 1}, {"in_chans": 1}),
        ({"img_size": (24, 40)}, {"img_size": (24, 40)}),
    ],
    ids=str,
)
def test_every_part_of_an_encoder_is_taken(tmp_path, settings, timms) -> None:
    model = timm_model(**timms)
    same(load(saved(tmp_path / "vit.safetensors", model), **settings), model.state_dict())


ROTARY = {"fc_norm": None, "use_fc_norm": False}  # timm's rotary ViTs have LayerScale, told or not


@pytest.mark.parametrize("kind", ["rope", "rope_mixed"])
@pytest.mark.parametrize("img_size", [32, (24, 40)], ids=str)
def test_rotary_encoders_take_rotary_files_of_any_size(tmp_path, kind, img_size) -> None:
    model = timm_model(f"vit_small_patch16_{kind}_224", **ROTARY)
    path = saved(tmp_path / "vit.safetensors", model)
    ours = load(path, position=kind, img_size=img_size, init_values=1.0)
    same(ours, model.state_dict())
    with pytest.raises(ConfigError, match=r"weights have blocks.0.gamma_1 .* set encoder.init_values, to any value"):
        load(path, position=kind, img_size=img_size)


@pytest.mark.parametrize("kind", ["rope", "rope_mixed"])
def test_rotary_encoders_without_gains_take_what_they_export(tmp_path, kind) -> None:
    config = EncoderConfig(**SMALL, position=kind)
    model = VisionEncoder(config).vit
    rebuilt = timm.create_model(timm_recipe(config)[0], **timm_recipe(config)[1])
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    same(load(saved(tmp_path / "vit.safetensors", rebuilt), position=kind), model.state_dict())


def test_context_and_target_encoder_both_start_there(tmp_path) -> None:
    model = timm_model()
    path = saved(tmp_path / "vit.safetensors", model)
    module = make_module(path)
    same(module.context_encoder.vit.state_dict(), model.state_dict())
    same(module.target_encoder.vit.state_dict(), model.state_dict())
    assert module.hparams["encoder"]["pretrained"] == path


def make_module(path):
    return HJEPALightningModule(
        encoder=SMALL | {"pretrained": path}, predictor=SMALL_PREDICTOR, projector=SMALL_PROJECTOR
    )


def test_heads_go_silently_and_a_class_token_with_a_word(tmp_path) -> None:
    model = timm_model(class_token=True, global_pool="token", num_classes=10)
    path = saved(tmp_path / "vit.safetensors", model)
    with pytest.warns(UserWarning, match="cls_token and its position are ignored") as caught:
        ours = load(path)
    assert len(caught) == 1
    theirs = model.state_dict()
    assert torch.equal(ours["pos_embed"], theirs["pos_embed"][:, 1:])
    same(ours, {k: v for k, v in theirs.items() if k in ours}, but=["pos_embed"])
    headed = timm_model(num_classes=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = load(saved(tmp_path / "headed.safetensors", headed))
    same(ours, {k: v for k, v in headed.state_dict().items() if k in ours})


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_registers_keep_their_positions_where_a_class_token_goes(tmp_path, no_embed_class) -> None:
    model = timm_model(class_token=True, reg_tokens=2, global_pool="token", no_embed_class=no_embed_class)
    path = saved(tmp_path / "vit.safetensors", model)
    if no_embed_class:
        with pytest.raises(ConfigError, match=r"register tokens of the weights have no positions and the enc"):
            load(path, reg_tokens=2)
        return
    with pytest.warns(UserWarning, match="cls_token"):
        ours = load(path, reg_tokens=2)
    assert torch.equal(ours["pos_embed"], model.pos_embed[:, 1:])
    assert torch.equal(ours["reg_token"], model.reg_token)


def test_a_norm_behind_the_pooling_becomes_the_tokens_norm(tmp_path) -> None:
    model = timm_model(fc_norm=True)
    with pytest.warns(UserWarning, match="fc_norm, which normalized the pooled features, now normalizes the tokens"):
        ours = load(saved(tmp_path / "vit.safetensors", model))
    assert torch.equal(ours["norm.weight"], model.fc_norm.weight)
    assert torch.equal(ours["norm.bias"], model.fc_norm.bias)


@pytest.mark.parametrize("img_size", [48, (16, 40)], ids=str)
@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.filterwarnings("ignore:.*cls_token and its position are ignored")
def test_positions_of_another_size_are_resampled_by_timms_function(tmp_path, img_size, class_token) -> None:
    model = timm_model(class_token=class_token, global_pool="token" if class_token else "avg")
    ours = load(saved(tmp_path / "vit.safetensors", model), img_size=img_size)
    grid = [12, 12] if img_size == 48 else [4, 10]
    expected = resample_abs_pos_embed(model.pos_embed, grid, [8, 8], num_prefix_tokens=int(class_token))
    assert torch.equal(ours["pos_embed"], expected[:, int(class_token) :])
    same(ours, {k: v for k, v in model.state_dict().items() if k in ours}, but=["pos_embed"])


@pytest.mark.parametrize("img_size", [32, 48])
def test_fixed_positions_start_from_fixed_positions_only(tmp_path, img_size) -> None:
    model = timm_model()
    path = saved(tmp_path / "vit.safetensors", model)
    with pytest.raises(ConfigError, match=r"positions of the weights differ by up to 1.* from the fixed .*set enc"):
        load(path, position="sincos", img_size=img_size)
    table = sincos_positions((8, 8), 48)[None]
    ours = load(saved(tmp_path / "fixed.bin", model, pos_embed=table), position="sincos", img_size=img_size)
    grid = [img_size // 4] * 2
    assert torch.equal(ours["pos_embed"], resample_abs_pos_embed(table, grid, [8, 8], num_prefix_tokens=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:.*cls_token and its position are ignored")
def test_the_published_fixed_table_is_taken_in_any_precision(tmp_path, dtype) -> None:
    """MAE's and I-JEPA's table, by the formula of their code: the class token's zeros, then the patches."""
    model = timm_model(class_token=True, global_pool="token")
    table = torch.tensor([[0.0] * 48, *mae_table(48, 8)])[None].to(dtype)
    ours = load(saved(tmp_path / "mae.bin", model, pos_embed=table), position="sincos")
    assert torch.equal(ours["pos_embed"], table[:, 1:].float())
    nearly = table.clone()
    nearly[0, 20, 5] += 0.02
    with pytest.raises(ConfigError, match=r"differ by up to 0.0\d+ from the fixed sine-cosine table"):
        load(saved(tmp_path / "tuned.bin", model, pos_embed=nearly), position="sincos")


REFUSED = [
    (
        {"embed_dim": 96},
        {},
        r"weight of the weights is \(48, 3, 4, 4\) and of the encoder \(96, .* set encoder.embed_dim to 48",
    ),
    ({"patch_size": 8}, {}, r"patch_embed.proj.weight of the weights is .*set encoder.patch_size to 4"),
    ({"in_chans": 1}, {}, r"patch_embed.proj.weight of the weights is .*set encoder.in_chans to 3"),
    ({"in_chans": 1, "patch_size": 8}, {}, r"set encoder.in_chans to 3 and encoder.patch_size to 4"),
    ({"depth": 4}, {}, r"weights lack blocks.3.norm1.weight; set encoder.depth to 3"),
    ({"depth": 2}, {}, r"weights have blocks.2.\S+ and the encoder has not; set encoder.depth to 3"),
    ({"init_values": 0.1}, {}, "weights lack blocks.0.ls1.gamma; remove encoder.init_values"),
    ({}, {"init_values": 0.1}, "weights have blocks.0.ls1.gamma .* set encoder.init_values"),
    ({"qk_norm": True}, {}, "weights lack blocks.0.attn.q_norm.weight; set encoder.qk_norm to false"),
    ({}, {"qk_norm": True}, r"weights have blocks.0.attn.[qk]_norm.\S+ .* set encoder.qk_norm to true"),
    ({"reg_tokens": 2}, {}, "weights lack reg_token; set encoder.reg_tokens to 0"),
    ({}, {"reg_tokens": 2}, "weights have reg_token .* set encoder.reg_tokens to 2"),
    (
        {"position": "rope"},
        {},
        r"have a position table \(pos_embed\) and the encoder has none; set encoder.pos.* to learned",
    ),
    (
        {},
        {"name": "rope"},
        r"no position table \(pos_embed\) and the encoder has one; set encoder.pos.* to rope,",
    ),
    (
        {},
        {"name": "rope_mixed"},
        r"no position table \(pos_embed\) and the encoder has one; .* to rope_mixed,",
    ),
    (
        {"position": "rope", "init_values": 1.0},
        {"name": "rope_mixed"},
        "weights have rope.freqs .* set encoder.position to rope_mixed",
    ),
    (
        {"position": "rope_mixed", "init_values": 1.0},
        {"name": "rope"},
        "weights lack rope.freqs; set encoder.position to rope",
    ),
    (
        {"position": "rope_mixed", "num_heads": 2},
        {"name": "rope_mixed"},
        "rope.freqs .* set encoder.num_heads to 3 and",
    ),
    ({"img_size": (16, 64)}, {}, "64 positions, which may be 4 x 16 or 8 x 8; set an encoder.img_size with another"),
    (
        {"img_size": 48},
        {"img_size": (24, 40)},
        "60 positions, which form no square; set an encoder.img_size with as",
    ),
]


@pytest.mark.parametrize(("settings", "timms", "message"), REFUSED, ids=[str((a, b)) for a, b, _ in REFUSED])
def test_weights_of_another_shape_or_kind_are_refused_in_one_sentence(tmp_path, settings, timms, message) -> None:
    if "name" in timms:
        timms = ROTARY | {"name": f"vit_small_patch16_{timms['name']}_224"}
    path = saved(tmp_path / "vit.safetensors", timm_model(**timms))
    measure(EncoderConfig(pretrained=path, **(SMALL | settings)))  # geometry alone reads no file
    with pytest.raises(ConfigError, match=message) as refused:
        load(path, **settings)
    assert str(refused.value).startswith(f"invalid `encoder.pretrained={path}`: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.safetensors", None, "there is no such file"),
        (
            "vit.npz",
            b"x",
            r"must be true \(timm's weights\), false, or the path of a .safetensors",
        ),
        ("vit.safetensors", b"junk", r"cannot be read \(.*use the state dict of a timm model"),
        ("vit.pth", b"junk", r"cannot be read \(.*use the state dict of a timm model"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, name, content, message) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(str(tmp_path / name))


def test_a_checkpoint_needs_no_file_of_weights(tmp_path) -> None:
    model = timm_model()
    path = tmp_path / "vit.safetensors"
    module = make_module(saved(path, model))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    kept = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "hparams_name": "kwargs"}
    kept["pytorch-lightning_version"] = "2.6.6"
    torch.save(kept, tmp_path / "run.ckpt")
    path.unlink()
    again = HJEPALightningModule.load_from_checkpoint(tmp_path / "run.ckpt")
    same(again.state_dict(), module.state_dict())
    assert again.hparams["encoder"]["pretrained"] == str(path)  # where it came from is not forgotten
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        again.load_from_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(ConfigError, match="there is no such file"):
        make_module(str(path))
    with without_pretrained():
        make_module(str(path))


NAME = "vit_tiny_patch16_224"


def test_timms_own_weights_come_by_timms_download(tmp_path, monkeypatch) -> None:
    """The real download, of a real address: timm's entry for the name is pointed at a file."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    native = timm.create_model(NAME)
    torch.save(native.state_dict(), tmp_path / "vit_tiny.pth")
    address = (tmp_path / "vit_tiny.pth").as_uri()
    entry = dataclasses.replace(_registry.get_pretrained_cfg(NAME), url=address, hf_hub_id=None, custom_load=False)
    monkeypatch.setitem(_registry._model_pretrained_cfgs, NAME, entry)
    with pytest.warns(UserWarning, match="encoder.pretrained=true: cls_token and its position"):
        encoder = VisionEncoder(EncoderConfig(name=NAME, pretrained=True, img_size=(112, 448)))
    ours, theirs = encoder.vit.state_dict(), native.state_dict()
    # 7 x 28 patches are as many as the 14 x 14 of the download, whose grid is known, so that nothing is mistaken.
    expected = resample_abs_pos_embed(theirs["pos_embed"], [7, 28], [14, 14], num_prefix_tokens=1)
    assert torch.equal(ours["pos_embed"], expected[:, 1:])
    same(ours, {k: v for k, v in theirs.items() if k in ours}, but=["pos_embed"])


def test_without_a_network_the_download_is_refused_in_one_sentence(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # its retries take a minute
    measure(EncoderConfig(name=NAME, pretrained=True))  # downloads nothing
    with pytest.raises(
        ConfigError, match=rf"timm's weights for {NAME} cannot be downloaded \(.*connect to the net"
    ) as refused:
        VisionEncoder(EncoderConfig(name=NAME, pretrained=True))
    assert "\n" not in str(refused.value)
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match=r"cannot be downloaded \(.*No pretrained weights exist"),
    ):
        VisionEncoder(EncoderConfig(name="vit_betwixt_patch16_gap_256", pretrained=True))
