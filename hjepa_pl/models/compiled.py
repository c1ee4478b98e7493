"""Compiling a network's transformer blocks in place (`torch.compile`)."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from hjepa_pl.types import ConfigError

Compile = bool | Literal["reduce-overhead"]

_VARIANTS = 64
"""Forms of one block that may be compiled: networks x numbers of tokens x training or not. torch stops at 8, and runs
the rest uncompiled."""


def compile_blocks(networks: Iterable[nn.Module | None], how: Compile, device: torch.device) -> None:
    """Compile every stack of blocks of the networks, block by block, so that names in state dicts stay as they are.

    All blocks of one shape share what is compiled. A second number of tokens makes the kernels general, and later ones
    use these: the few shapes of the masks are all seen within some steps.

    Args:
        networks: Encoders and predictor.
        how: True, or 'reduce-overhead': with CUDA graphs, which take launches off the host.
        device: Where they will run.

    Raises:
        ConfigError: If there is no compiler for the device, or 'reduce-overhead' would do nothing on it.
    """
    if not how:
        return
    if how != "reduce-overhead" and how is not True:
        raise ConfigError(f"compile {how!r} is refused; give true, false or 'reduce-overhead'.")
    if how == "reduce-overhead" and device.type != "cuda":
        raise ConfigError(f"compile 'reduce-overhead' does nothing on device '{device.type}'; set compile to true.")
    _refuse_without_compiler(device)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    mode: dict[str, Any] = {} if how is True else {"mode": how}
    for network in networks:
        for name, stack in [] if network is None else network.named_modules():
            if name.rpartition(".")[2] == "blocks":
                for block in stack.children():
                    block.compile(**mode)


def _refuse_without_compiler(device: torch.device) -> None:
    """Compile next to nothing: torch says what it lacks, a C++ compiler or Triton, only when it needs it."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0].rstrip(".")
        raise ConfigError(
            f"compile true does not work on device '{device.type}' here: {reason}; install what it asks for (on a CPU "
            "a C++ compiler), or set compile to false."
        ) from None
