"""Muon for the hidden matrices of a network, and AdamW for everything else, as one optimizer."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

_STEPS = 5
"""Newton-Schulz iterations."""
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic polynomial, of x, x^3 and x^5: they raise small singular values fastest."""
_RMS = 0.2
"""Root mean square of an update over the learning rate, as AdamW's in practice (arXiv:2502.16982, section 2.2)."""


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices with nearly the same singular vectors as the given ones, and singular values of about 1.

    Five Newton-Schulz iterations in bfloat16 (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/), which
    leave singular values between 0.7 and 1.2, those that were tiny excepted.

    Args:
        matrices: (n, rows, columns), rows <= columns: the products are of that side.

    Returns:
        (n, rows, columns), bfloat16.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def muon_updates(matrices: Sequence[Tensor], parts: int) -> list[Tensor]:
    """Return the update of each matrix over the learning rate: all blocks of one shape in one batched computation.

    Args:
        matrices: Momentum, each (rows, columns).
        parts: Equal blocks of rows that are orthogonalized each by itself: 3 for queries, keys and values.

    Returns:
        Matrices of the same shapes, scaled so that their root mean square is about 0.2 (arXiv:2502.16982, equation 4).
    """
    blocks = [x.unflatten(0, (parts, -1)) for x in matrices]
    wide = [x if x.shape[1] <= x.shape[2] else x.mT for x in blocks]
    updates: dict[int, Tensor] = {}
    for shape in dict.fromkeys(x.shape for x in wide):
        same = [i for i, x in enumerate(wide) if x.shape == shape]
        scaled = orthogonalized(torch.cat([wide[i] for i in same])).to(matrices[0].dtype) * (
            _RMS * math.sqrt(max(shape[1:]))
        )
        for i, x in zip(same, scaled.split(parts), strict=True):
            updates[i] = (x if wide[i] is blocks[i] else x.mT).reshape(matrices[i].shape)
    return [updates[i] for i in range(len(wide))]


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) for groups with `parts` of at least 1, and fused AdamW for the others.

    Muon's update is that of `torch.optim.Muon(nesterov=True, adjust_lr_fn="match_rms_adamw")`, so that learning rate
    and decoupled weight decay are AdamW's, but for equal blocks of a matrix each by itself and shapes in batches. As
    fused AdamW's, a step is skipped on the device where `found_inf` is 1.

    Args:
        params: Parameter groups, each with `parts`: 0 is AdamW; n >= 1 is Muon on n equal blocks of each matrix' rows.
        lr: Learning rate.
        betas: Decay rates of AdamW's two moments.
        momentum: Decay rate of Muon's.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], momentum: float = 0.95
    ) -> None:
        own = {"parts": 0, "momentum": momentum}
        # `fused` also keeps AdamW's counters on the device when a state is loaded.
        super().__init__(params, {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": 0.0, "fused": True, **own})
        self._step_supports_amp_scaling = True

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters that have a gradient; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._muon if group["parts"] else self._adamw)(group, parameters)
        return loss

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p] |= {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        first, second, steps = ([self.state[p][k] for p in parameters] for k in ("exp_avg", "exp_avg_sq", "step"))
        beta1, beta2 = group["betas"]
        adamw(
            parameters, [p.grad for p in parameters if p.grad is not None], first, second, [], steps, fused=True,
            grad_scale=getattr(self, "grad_scale", None), found_inf=getattr(self, "found_inf", None), amsgrad=False,
            beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
            maximize=False,
        )  # fmt: skip

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        moments = [self.state[p]["momentum_buffer"] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if (scale := getattr(self, "grad_scale", None)) is not None:
            gradients = list(torch._foreach_div(gradients, scale))
        skipped: Tensor | None = getattr(self, "found_inf", None)
        if skipped is not None:  # a gradient that equals the moment leaves it as it is
            gradients = [torch.where(skipped > 0, m, g) for m, g in zip(moments, gradients, strict=True)]
        torch._foreach_lerp_(moments, gradients, 1.0 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, moments, group["momentum"])
        updates = muon_updates(nesterov, group["parts"])
        kept = 1.0 if skipped is None else 1.0 - skipped
        torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"] * kept)
        torch._foreach_mul_(updates, group["lr"] * kept)
        torch._foreach_sub_(parameters, updates)
