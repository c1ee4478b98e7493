"""Compiling a network's transformer blocks in place (`torch.compile`)."""

from collections.abc import Iterable

import torch
from torch import nn

from hjepa_pl.types import ConfigError

_VARIANTS = 64
"""Forms of one block that may be compiled: networks x numbers of tokens x training or not. torch stops at 8, and runs
the rest uncompiled."""


def compile_blocks(networks: Iterable[nn.Module | None], device: torch.device) -> None:
    """Compile every stack of blocks of the networks, block by block, so that names in state dicts stay as they are.

    All blocks of one shape share what is compiled. A second number of tokens makes the kernels general, and later ones
    use these: the few shapes of the masks are all seen within some steps.

    There is no mode with CUDA graphs: those of single blocks overwrite one another's outputs (PyTorch issue 152887).

    Args:
        networks: Encoders and predictor; None is passed over.
        device: Where they will run.

    Raises:
        ConfigError: If there is no compiler for the device.
    """
    _refuse_without_compiler(device)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    for network in networks:
        for name, stack in [] if network is None else network.named_modules():
            if name.rpartition(".")[2] == "blocks":
                for block in stack.children():
                    block.compile()


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
