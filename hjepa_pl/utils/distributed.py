"""Collective operations, with gradients where objectives need them."""

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PEER_ENDED = "another process of this run ended; what it says itself is the cause."
_OF_COLLECTIVES = re.compile(r"gloo|nccl|process ?group|tcpstore|connection (reset|closed)|broken pipe", re.IGNORECASE)


def world_size() -> int:
    """Return the number of processes in the default group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GatherRows(torch.autograd.Function):
    """All-gather along the first axis; the gradient of a local row is summed over all ranks.

    `torch.distributed.nn.all_gather` does the same but is deprecated in parts and falls back to scatter loops on gloo.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone(memory_format=torch.contiguous_format)  # reduced in place
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(x: Tensor) -> Tensor:
    """Gather (B, ...) from every rank into (world * B, ...), with gradients; the identity with one process.

    A loss of the gathered rows is equal on all ranks. DDP averages gradients over ranks; the backward pass here sums
    them, so that the average is the gradient of the global loss.
    """
    return _GatherRows.apply(x) if world_size() > 1 else x


def own_rows(x: Tensor) -> Tensor:
    """Return the rows of this rank from those of `gather_rows`."""
    return x.chunk(world_size())[dist.get_rank()] if world_size() > 1 else x


def mean_over_ranks(x: Tensor) -> Tensor:
    """Return the mean of a tensor over the ranks, without gradient; the tensor itself with one process."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world_size()


def from_rank_zero(values: Sequence[float], device: torch.device) -> list[float]:
    """Broadcast rank zero's numbers in float64; `device` is the one that the process group uses."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.broadcast(tensor, 0)
    numbers: list[float] = tensor.tolist()
    return numbers


def peer_ended(error: BaseException) -> bool:
    """Return True if an error is that of a collective operation whose peer process has ended."""
    seen: BaseException | None = error
    while seen is not None and world_size() > 1:
        if isinstance(seen, dist.DistError):
            return True
        if type(seen) is RuntimeError and _OF_COLLECTIVES.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
