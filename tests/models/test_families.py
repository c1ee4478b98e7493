"""A new encoder family is one class: named by its import path, it trains, is measured, checked and reloaded."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hjepa_pl.__main__ import main
from hjepa_pl.models import ENCODERS, EncoderConfig, VisionEncoder, build_encoder, measure
from hjepa_pl.modules.hjepa import HJEPALightningModule
from hjepa_pl.types import ConfigError
from tests.models.own_encoder import ConvStemEncoder

FAMILY = "tests.models.own_encoder.ConvStemEncoder"
OWN = {"family": FAMILY, "embed_dim": 32, "depth": 3, "img_size": 16, "patch_size": 4, "in_chans": 1}


def test_its_shape_is_known_without_weights() -> None:
    shape = measure(EncoderConfig(**OWN))
    assert (shape.grid, shape.depth, shape.embed_dim) == ((4, 4), 3, 32)
    encoder = build_encoder(EncoderConfig(**OWN, options={"heads": 4}))
    assert isinstance(encoder, ConvStemEncoder)
    assert encoder.blocks[0].self_attn.num_heads == 4
    assert isinstance(build_encoder(EncoderConfig(embed_dim=48, depth=1, num_heads=3)), VisionEncoder)


def test_it_trains_two_steps_and_is_reloaded(tmp_path, monkeypatch) -> None:
    """By the command line, on real images, with levels at two depths, two cells, and the image."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hjepa"])
    words = [f"--model.encoder.{key}={value}" for key, value in OWN.items() if key != "options"]
    config = Path(__file__).parents[2] / "configs/quickstart.yaml"
    text = config.read_text().replace("encoder: {embed_dim: 64, depth: 4, num_heads: 4,", "encoder: {")
    Path("own.yaml").write_text(text.replace("{cell: 2, ", "{cell: 2, block: 2, "))
    fast = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--data.batch_size=8", "--data.epoch_size=16"]
    assert main(["fit", "--config", "own.yaml", *words, "--model.encoder.options={heads: 4}", *fast]) == 0
    path = tmp_path / "results/quickstart/checkpoints/last.ckpt"
    module = HJEPALightningModule.load_from_checkpoint(path)
    assert isinstance(module.context_encoder, ConvStemEncoder)
    assert isinstance(module.target_encoder, ConvStemEncoder)
    assert module.context_encoder.blocks[0].self_attn.num_heads == 4
    untrained = HJEPALightningModule(**module.hparams).context_encoder
    pairs = list(zip(module.context_encoder.parameters(), untrained.parameters(), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    assert module.encode(torch.randn(2, 1, 16, 16)).shape == (2, 32)


def test_it_learns_from_every_part_of_the_loss() -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(**OWN), inner=(1,), affine=(1,))
    images, keep = torch.randn(2, 1, 16, 16), torch.arange(6).expand(2, -1)
    outputs = encoder(images, keep, (1, "last"))
    assert {b: tuple(x.shape) for b, x in outputs.items()} == {1: (2, 6, 32), "last": (2, 6, 32)}
    outputs["last"].square().sum().backward()
    assert encoder.stem[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "tool",
    [["check", "own.yaml"], pytest.param(["bench", "--config", "own.yaml", "--steps=2"], marks=pytest.mark.slow)],
    ids=str,
)
def test_the_tools_take_it(tool, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hjepa"])
    config = Path(__file__).parents[2] / "configs/quickstart.yaml"
    keys = ", ".join(f"{key}: {value}" for key, value in OWN.items())
    Path("own.yaml").write_text(re.sub("encoder: {.*}", f"encoder: {{{keys}}}", config.read_text()))
    small = ["--data.batch_size=8", "--data.epoch_size=128", "--trainer.max_epochs=1"]
    assert main([*tool, *small]) == 0
    shown = capsys.readouterr().out
    assert "FLOP" in shown
    parameters = sum(p.numel() for p in build_encoder(EncoderConfig(**OWN)).parameters())
    assert tool[0] == "bench" or f"context encoder   {parameters:,}" in shown


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"family": "vitt"},
            "invalid `encoder.family=vitt`: must be vit, or the import path of your own; did you mean",
        ),
        ({"family": "nowhere.Encoder"}, "invalid `encoder.family=nowhere.Encoder`: cannot be imported (No module"),
        (
            {"family": "torch.nn.Linear"},
            "invalid `encoder.family=torch.nn.Linear`: must be a subclass of hjepa_pl.models.Encoder.",
        ),
        (
            OWN | {"qk_norm": True},
            f"invalid `encoder.qk_norm=true`: has no effect with encoder.family={FAMILY}; remove",
        ),
        (
            OWN | {"options": {"head": 3}},
            f"encoder.options does not accept 'head' with encoder.family={FAMILY}; its options are heads.",
        ),
        (
            {"options": {"heads": 3}},
            "encoder.options does not accept 'heads' with encoder.family=vit; it has no options.",
        ),
    ],
)
def test_what_a_family_does_not_read_is_rejected(settings, message) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        measure(EncoderConfig(**settings))


def test_a_grid_that_does_not_make_up_the_image_is_an_error_of_the_family() -> None:
    with pytest.raises(ValueError, match=r"ConvStemEncoder: grid \(4, 4\) times patch_size \(4, 4\) is \(16, 16\)"):
        measure(EncoderConfig(**(OWN | {"img_size": 18})))


def test_a_family_is_registered_by_one_line(monkeypatch) -> None:
    monkeypatch.setattr(ENCODERS, "_parts", dict(ENCODERS))
    ENCODERS["conv_stem"] = ConvStemEncoder
    assert isinstance(build_encoder(EncoderConfig(**(OWN | {"family": "conv_stem"}))), ConvStemEncoder)
    with pytest.raises(ValueError, match="registered already"):
        ENCODERS["conv_stem"] = ConvStemEncoder


def test_losses_masks_metrics_and_models_are_plain_pytorch() -> None:
    """In a process of its own: nothing of Lightning is imported, and a user's own loop trains the networks."""
    code = """
import sys, torch
from hjepa_pl.losses import SIGReg, VICReg, NTXent, REGULARIZERS, prediction_loss, view_loss
from hjepa_pl.masks import MASKS, MultiBlockMasks, MaskConfig, build_masks
from hjepa_pl.evaluation import PROBES, effective_rank, knn_accuracy, linear_probe, position_share
z = torch.randn(2, 8, 4, requires_grad=True)
sum(loss()(z) for loss in (SIGReg, VICReg, NTXent)).backward()
assert z.grad.abs().sum() > 0
from hjepa_pl.models import EncoderConfig, FeaturePyramid, Predictor, PredictorConfig, Projector, ProjectorConfig
from hjepa_pl.models import PyramidConfig, VisionEncoder
encoder = VisionEncoder(EncoderConfig(embed_dim=48, depth=3, num_heads=3, img_size=32, patch_size=4), inner=(1, 2))
predictor = Predictor(PredictorConfig(depth=1), encoder.embed_dim, encoder.grid, cells=(1,))
projector = Projector(ProjectorConfig(hidden_dim=32), encoder.embed_dim)
pyramid = FeaturePyramid(PyramidConfig(dim=16), encoder.embed_dim)
images, keep = torch.randn(2, 3, 32, 32), torch.arange(20).expand(2, -1)
(out,) = predictor(encoder(images, keep)["last"], keep, (torch.arange(40, 48).expand(2, 1, -1),))
maps = pyramid(list(encoder(images, blocks=(1, 2, "last")).values()), encoder.grid)
(out.mean() + projector(encoder(images)["last"].mean(dim=1)).mean() + maps[0].mean()).backward()
assert not [name for name in sys.modules if name.split(".")[0] in ("lightning", "pytorch_lightning")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_stem_of_the_example_does_not_cross_patches() -> None:
    """As the contract of `Encoder.forward` demands: hidden pixels do not reach visible tokens."""
    encoder = ConvStemEncoder(EncoderConfig(**OWN)).eval()
    images, keep = torch.randn(1, 1, 16, 16), torch.arange(4)[None]  # the first row of patches
    other = images.clone()
    other[:, :, 4:] = 9.0
    assert torch.equal(encoder(images, keep)["last"], encoder(other, keep)["last"])
    assert isinstance(encoder, nn.Module)
