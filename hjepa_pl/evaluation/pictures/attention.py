"""Attention maps of any encoder that attends by softmax: recorded during a forward pass, and rolled out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SOFTMAX = (Tensor.softmax, torch.softmax, F.softmax)


class AttentionRecorder(TorchFunctionMode):
    """Records the attention weights of what runs within it, whatever the class of the layers.

    It sees the calls of `softmax` on (B, heads, N, N) and of `scaled_dot_product_attention` without a mask. Results
    are unchanged.

    Attributes:
        weights: (B, N, N) of each layer in order, the mean over its heads; rows sum to 1.

    Example:
        >>> q = torch.randn(2, 4, 9, 8)
        >>> with AttentionRecorder() as recorder:
        ...     _ = F.scaled_dot_product_attention(q, q, q)
        >>> [tuple(w.shape) for w in recorder.weights]
        [(2, 9, 9)]
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, and keep the weights if it attends."""
        out = func(*args, **(kwargs or {}))
        if func in _SOFTMAX:
            self._keep(out)
        elif func is F.scaled_dot_product_attention and len(args) >= 2 and (kwargs or {}).get("attn_mask") is None:
            q, k = args[0].float(), args[1].float()
            self._keep((q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1))
        return out

    def _keep(self, weights: Tensor) -> None:
        if weights.dim() == 4 and weights.shape[-1] == weights.shape[-2]:
            self.weights.append(weights.detach().float().mean(dim=1))


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """Return the attention rollout (Abnar & Zuidema, https://arxiv.org/abs/2005.00928, section 3).

    The product of the layers' weights, each averaged with the identity for the residual connection: how much each input
    token reaches each output token.

    Args:
        weights: (B, N, N) of each layer, first to last, the mean over its heads.

    Returns:
        (B, N, N); rows sum to 1.

    Example:
        >>> float(rollout([torch.eye(3)[None]])[0, 1, 1])
        1.0
    """
    eye = torch.eye(weights[0].shape[-1], device=weights[0].device)
    product = eye.expand_as(weights[0])
    for layer in weights:
        product = (0.5 * layer + 0.5 * eye) @ product
    return product


def mean_query(weights: Tensor, patches: int) -> Tensor:
    """Return the attention of the pooled embedding: the mean over the patches' queries, on the patches.

    Args:
        weights: (B, N, N), prefix tokens first.
        patches: Number of patch tokens, the last of the N.

    Returns:
        (B, patches), which sum to 1.
    """
    on_patches = weights[:, -patches:, -patches:].mean(dim=1)
    return on_patches / on_patches.sum(dim=1, keepdim=True).clamp_min(1e-12)
