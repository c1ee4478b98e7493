"""Positions on another grid are timm's, by values and gradients, without the gradient that some devices lack."""

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from hjepa_pl.models.config import EncoderConfig
from hjepa_pl.models.encoder import VisionEncoder, resample_positions


@pytest.mark.parametrize("old", [(8, 8), (6, 10), (14, 14)], ids=str)
@pytest.mark.parametrize("new", [(3, 3), (6, 6), (4, 10), (16, 16), (5, 23), (1, 8)], ids=str)
def test_it_equals_timms_resampling_both_ways(old, new) -> None:
    table = torch.randn(1, old[0] * old[1], 24, requires_grad=True)
    weight = torch.randn(1, new[0] * new[1], 24)
    expected = resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=0)
    found = resample_positions(table, old, new)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), table)
    (gradient,) = torch.autograd.grad((found * weight).sum(), table)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-5)


def test_a_crop_of_another_size_trains_the_table_without_the_bicubic_gradient() -> None:
    encoder = VisionEncoder(EncoderConfig(embed_dim=48, depth=1, num_heads=3, img_size=32, patch_size=4))
    with torch.inference_mode():  # as a validation does, before training
        encoder(torch.randn(1, 3, 16, 12))
    with profile(activities=[ProfilerActivity.CPU]) as found, torch.autocast("cpu", dtype=torch.bfloat16):
        encoder(torch.randn(2, 3, 16, 12))["last"].square().mean().backward()
    assert encoder.vit.pos_embed.grad.abs().sum() > 0
    assert not [event.name for event in found.events() if "bicubic" in event.name and "backward" in event.name]


def test_fake_tensors_and_real_ones_do_not_meet() -> None:
    """`hjepa check` counts a step on fake tensors in the process that may train later."""
    real = resample_positions(torch.randn(1, 64, 8), (8, 8), (4, 5))
    with FakeTensorMode():
        assert resample_positions(torch.randn(1, 64, 8), (8, 8), (4, 5)).shape == real.shape
    assert resample_positions(torch.randn(1, 64, 8), (8, 8), (4, 6)).isfinite().all()
    assert resample_positions(torch.empty(1, 64, 8, device="meta"), (8, 8), (4, 6)).shape == (1, 24, 8)
