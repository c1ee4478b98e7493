import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hjepa_pl.models.attention import check_kernel, fused_is_faster
from hjepa_pl.models.config import EncoderConfig, PredictorConfig
from hjepa_pl.models.encoder import VisionEncoder
from hjepa_pl.models.predictor import Predictor
from hjepa_pl.types import ConfigError

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32, "patch_size": 4}
KERNELS = {
    "flash": "aten::_scaled_dot_product_flash_attention_for_cpu",
    "math": "aten::_scaled_dot_product_attention_math",
    "eager": "aten::softmax",
}


def operators(run) -> set[str]:
    """Return the names of the operators that a call runs."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    return {event.name for event in found.events()}


def encoder_of(**extra) -> VisionEncoder:
    torch.manual_seed(0)
    return VisionEncoder(EncoderConfig(**SMALL, **extra)).eval()


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("kind", KERNELS)
def test_the_kernel_asked_for_is_the_one_that_runs(kind, position) -> None:
    encoder, images = encoder_of(attention=kind, position=position), torch.randn(1, 3, 32, 32)
    ran = operators(lambda: encoder(images))
    assert KERNELS[kind] in ran
    assert not ran & ({KERNELS["flash"], KERNELS["math"]} - {KERNELS[kind]})


def test_auto_is_fused_but_for_bf16_on_the_cpu() -> None:
    encoder, images = encoder_of(), torch.randn(1, 3, 32, 32)
    assert KERNELS["flash"] in operators(lambda: encoder(images))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ran = operators(lambda: encoder(images))
    assert "aten::scaled_dot_product_attention" not in ran


def test_where_fused_attention_pays() -> None:
    for gradient in (False, True):
        for half in (False, True):
            assert fused_is_faster("cuda", half, gradient)
            assert fused_is_faster("cpu", half, gradient) is not half
            assert fused_is_faster("mps", half, gradient) is gradient


@pytest.mark.parametrize("attention", ["self", "cross"])
@pytest.mark.parametrize("kind", KERNELS)
def test_the_predictor_runs_the_same_kernel(kind, attention) -> None:
    config = PredictorConfig(embed_dim=24, depth=2, num_heads=3, attention=attention)
    predictor = Predictor(config, 48, (4, 4), (1,), kind)
    index, targets = torch.arange(8)[None], torch.arange(8, 12)[None, None]
    ran = operators(lambda: predictor(torch.randn(1, 8, 48), index, (targets,)))
    assert KERNELS[kind] in ran
    assert not ran & ({KERNELS["flash"], KERNELS["math"]} - {KERNELS[kind]})


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_kernels_agree_in_outputs_and_gradients(position) -> None:
    images, results = torch.randn(2, 3, 32, 32), []
    for kind in KERNELS:
        encoder = encoder_of(attention=kind, position=position)
        out = encoder(images)["last"]
        out.square().mean().backward()
        results.append([out, *(p.grad for p in encoder.parameters())])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_kernel_is_kept_when_blocks_are_recomputed() -> None:
    encoder = encoder_of(attention="math", grad_checkpointing=True).train()
    loss = encoder(torch.randn(1, 3, 32, 32))["last"].sum()
    ran = operators(loss.backward)
    assert KERNELS["math"] in ran
    assert KERNELS["flash"] not in ran


def test_a_kernel_that_the_device_lacks_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"invalid `encoder.attention=efficient`: must be auto, flash, math, eager on device cpu\."
    ):
        encoder_of(attention="efficient")(torch.randn(1, 3, 32, 32))
    with pytest.raises(
        ConfigError, match=r"invalid `encoder.attention=flash`: must be auto, math, eager on device mps\."
    ):
        check_kernel("flash", "mps", half=False)
    with pytest.raises(
        ConfigError,
        match=r"`encoder.attention=flash`: needs 16 bits on device cuda; set trainer.precision",
    ):
        check_kernel("flash", "cuda", half=False)
    check_kernel("flash", "cuda", half=True)


def test_a_trained_model_is_used_on_any_device() -> None:
    """Without gradients a kernel that the device lacks is PyTorch's choice."""
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder_of(attention="efficient")(images), encoder_of()(images))
