"""Stacks of transformer blocks: running them, with or without gradient checkpointing, and compiling them."""

from collections.abc import Container, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hjepa_pl.models.attention import AttentionKind, attention_kernel
from hjepa_pl.types import ConfigError

_RECOMPILE_LIMIT = 64
"""Compiled variants of one block: networks x token counts x training or not. PyTorch's default is 8, beyond which it
runs uncompiled."""


def run_blocks(
    blocks: nn.ModuleList | nn.Sequential,
    x: Tensor,
    extras: Sequence[tuple[Any, ...]],
    attention: AttentionKind = "auto",
    every: int = 0,
    wanted: Container[object] = (),
) -> tuple[Tensor, dict[int, Tensor]]:
    """Run blocks one after the other.

    Args:
        blocks: The blocks; each is called with the tokens and its `extras`.
        x: (B, N, D) tokens.
        extras: Further arguments of each block.
        attention: Kernel of attention (see `attention_kernel`).
        every: Gradient checkpointing (arXiv:1604.06174): recompute the blocks in groups of this size in the backward
            pass and store only the inputs of each group; 0 stores everything. Drop path draws the same again.
        wanted: Numbers, from 1, of the blocks whose output is also returned.

    Returns:
        The output of the last block, and the wanted outputs by block number.
    """

    def run_group(x: Tensor, first: int, end: int) -> tuple[Tensor, ...]:
        kept = []
        with attention_kernel(blocks[first:end], attention, x):
            for i in range(first, end):
                x = blocks[i](x, *extras[i])
                if i + 1 in wanted:
                    kept.append(x)
        return x, *kept

    outputs: list[Tensor] = []
    recompute = every > 0 and torch.is_grad_enabled()
    size = every if recompute else max(len(blocks), 1)
    for first in range(0, len(blocks), size):
        end = min(first + size, len(blocks))
        x, *kept = checkpoint(run_group, x, first, end, use_reentrant=False) if recompute else run_group(x, first, end)
        outputs += kept
    return x, dict(zip([n for n in range(1, len(blocks) + 1) if n in wanted], outputs, strict=True))


def compile_blocks(networks: Iterable[nn.Module | None], device: torch.device) -> None:
    """Compile every block of the networks in place (`torch.compile`); names in state dicts stay the same.

    Blocks of one shape share the compiled code. A second number of tokens makes the kernels dynamic, so that the few
    shapes of the masks need no further compilation.

    CUDA graphs are not used: those of single blocks overwrite one another's outputs (PyTorch issue 152887).

    Args:
        networks: Encoders and predictor; None is skipped.
        device: The device that they will run on.

    Raises:
        ConfigError: If there is no compiler for the device, or a network has no blocks.
    """
    _check_compiler(device)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
    for network in filter(None, networks):
        stacks = [stack for name, stack in network.named_modules() if name.rpartition(".")[2] == "blocks"]
        if not stacks:
            raise ConfigError(
                f"invalid `compile=true`: has no effect on {type(network).__name__}, which has no module named blocks; "
                "name its stack of blocks so, or set compile to false."
            )
        for block in [block for stack in stacks for block in stack.children()]:
            block.compile()


def _check_compiler(device: torch.device) -> None:
    """Compile a trivial function: PyTorch reports a missing C++ compiler or Triton only when it needs it."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0].rstrip(".")
        raise ConfigError(
            f"invalid `compile=true`: does not work on device {device.type} here ({reason}); install what is missing "
            "(on a CPU a C++ compiler), or set compile to false."
        ) from None
