"""Attention and the choice of its kernel."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hjepa_pl.functional.precision import autocasts
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import invalid

AttentionKind = Literal["auto", "flash", "efficient", "math", "eager"]

_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_AVAILABLE = {
    "cpu": ("auto", "flash", "math", "eager"),
    "cuda": ("auto", "flash", "efficient", "math", "eager"),
    "mps": ("auto", "math", "eager"),
}


def check_kernel(kind: AttentionKind, device: str, half: bool) -> None:
    """Reject a kernel that a device does not have.

    Args:
        kind: The value of `encoder.attention`.
        device: Type of the device: 'cpu', 'cuda' or 'mps'.
        half: True if attention runs in 16 bits.

    Raises:
        ConfigError: If PyTorch has no such kernel for the device, or none in 32 bits.
    """
    available = _AVAILABLE.get(device, ("auto", "math", "eager"))
    if kind not in available:
        raise invalid("encoder.attention", kind, f"must be {', '.join(available)} on device {device}.")
    if kind == "flash" and device == "cuda" and not half:
        raise invalid(
            "encoder.attention",
            kind,
            "needs 16 bits on device cuda; set trainer.precision to bf16-mixed, or attention to efficient or auto.",
        )


def fused_is_faster(device: str, half: bool, gradient: bool) -> bool:
    """Return True if PyTorch's fused attention is faster than plain products on a type of device.

    It is slower in 16 bits on a CPU: forward and backward of a ViT-S layer on 68 to 196 tokens take 2.2 to 4.6 times
    as long (torch 2.15, 2 cores with AVX-512). It is slower on Apple's GPU without gradients (target encoder):
    twice as long from 9 tokens on (PyTorch pull 178545, issue 179294; not measured here).

    Args:
        device: Type of the device.
        half: True if attention runs in 16 bits under autocast.
        gradient: True if a backward pass may follow.
    """
    if device == "mps":
        return gradient
    return not (device == "cpu" and half)


def attention_kernel(blocks: Iterable[nn.Module], kind: AttentionKind, x: Tensor) -> AbstractContextManager[None]:
    """Set fused or plain attention in blocks, and return the context manager to run them in.

    'auto' is PyTorch's choice, or plain products where they are faster; 'eager' is plain products; the others are the
    kernels of `scaled_dot_product_attention`. Without gradients a kernel that the device lacks falls back to 'auto', so
    that a trained model runs on any device.

    Raises:
        ConfigError: With gradients, if the device lacks the kernel.
    """
    if kind not in _KERNELS:
        device = x.device.type
        fused = kind == "auto" and fused_is_faster(device, autocasts(x.device), torch.is_grad_enabled())
        _set_fused(blocks, fused)
        return nullcontext()
    half = x.dtype != torch.float32 or autocasts(x.device)
    try:
        check_kernel(kind, x.device.type, half)
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
