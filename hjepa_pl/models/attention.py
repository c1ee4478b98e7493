"""Which kernel computes attention."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hjepa_pl.functional.precision import autocasts
from hjepa_pl.types import ConfigError

AttentionKind = Literal["auto", "flash", "efficient", "math", "eager"]

_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_GIVEN = {
    "cpu": ("auto", "flash", "math", "eager"),
    "cuda": ("auto", "flash", "efficient", "math", "eager"),
    "mps": ("auto", "math", "eager"),
}


def refuse_kernel(kind: AttentionKind, device: str, half: bool) -> None:
    """Refuse a kernel that a device does not have.

    Args:
        kind: What `encoder.attention` asks for.
        device: Type of the device: 'cpu', 'cuda' or 'mps'.
        half: Whether attention runs in 16 bits.

    Raises:
        ConfigError: If PyTorch has no such kernel for the device, or none in 32 bits.
    """
    given = _GIVEN.get(device, ("auto", "math", "eager"))
    if kind not in given:
        raise ConfigError(
            f"encoder.attention '{kind}' does not exist on device '{device}'; {', '.join(map(repr, given))} would do."
        )
    if kind == "flash" and device == "cuda" and not half:
        raise ConfigError(
            "encoder.attention 'flash' works in 16 bits only on device 'cuda'; "
            "set trainer.precision to 'bf16-mixed', or take 'efficient' or 'auto'."
        )


def fused_pays(device: str, half: bool, gradient: bool) -> bool:
    """Return whether PyTorch's fused attention is the faster form on a type of device.

    It is, but for 16 bits on the CPU: forward and backward of a ViT-S layer on 68 to 196 tokens take 2.2 to 4.6 times
    as long as the plain products do there (torch 2.15, 2 cores with AVX-512). And but for Apple's GPU without
    gradients (the target encoder): what it runs then takes twice as long as the products from 9 tokens on (PyTorch
    pull 178545, issue 179294; not measured here). With gradients both are the plain products there.

    Args:
        device: Type of the device.
        half: Whether attention runs in 16 bits under autocast.
        gradient: Whether a backward pass may follow.
    """
    if device == "mps":
        return gradient
    return not (device == "cpu" and half)


def attention_kernel(blocks: Iterable[nn.Module], kind: AttentionKind, x: Tensor) -> AbstractContextManager:
    """Set the form of attention of blocks, and return the context in which to run them on x.

    'auto' leaves the kernel to PyTorch and takes plain products where these are faster; 'eager' is always plain
    products; the others are the kernels of `scaled_dot_product_attention` by name. A trained model is used anywhere:
    without gradients a kernel that the device lacks is 'auto'.

    Raises:
        ConfigError: With gradients, if the device lacks the kernel.
    """
    if kind not in _KERNELS:
        device = x.device.type
        pays = kind == "auto" and fused_pays(device, autocasts(x.device), torch.is_grad_enabled())
        _set_fused(blocks, pays)
        return nullcontext()
    half = x.dtype != torch.float32 or autocasts(x.device)
    try:
        refuse_kernel(kind, x.device.type, half)
    except ConfigError:
        if torch.is_grad_enabled():
            raise
        return attention_kernel(blocks, "auto", x)
    _set_fused(blocks, True)
    return sdpa_kernel(_KERNELS[kind])


def _set_fused(blocks: Iterable[nn.Module], fused: bool) -> None:
    for block in blocks:
        attention: Any = block.attn
        attention.fused_attn = fused


def attend(q: Tensor, k: Tensor, v: Tensor, fused: bool) -> Tensor:
    """Return softmax(q k' / sqrt(d)) v for (B, heads, tokens, d) tensors."""
    if fused:
        return F.scaled_dot_product_attention(q, k, v)
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
