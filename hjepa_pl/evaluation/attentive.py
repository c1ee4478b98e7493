"""Attentive probe: one cross-attention block with a learned query on frozen patch tokens, and a linear layer."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hjepa_pl.evaluation.linear import top_k_accuracy
from hjepa_pl.functional.stratify import validation_split
from hjepa_pl.types import ConfigError

RATES = (3e-4, 1e-3, 3e-3)
"""Learning rates; the validation split chooses."""
EPOCHS, BATCH, DECAY, WARMUP = 20, 256, 0.01, 0.1


class AttentiveFit(NamedTuple):
    """A trained attentive probe, on the test images."""

    logits: Tensor
    """(M, num_classes) of the test images."""
    rate: float
    """Chosen learning rate."""
    val: float | None
    """Accuracy in percent on the validation split; None without such a split."""


class AttentiveHead(nn.Module):
    """Pools tokens by attention from one learned query, then an MLP with a residual, a norm and a linear layer.

    As the probe of V-JEPA (arXiv:2404.08471, section 4.1) with one block.

    Args:
        dim: Width D of the tokens, a multiple of `heads`.
        num_classes: Number of classes.
        heads: Attention heads.
    """

    def __init__(self, dim: int, num_classes: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(dim))
        self.norm_tokens, self.norm_pooled, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.key_value, self.project = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.head = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.query, std=0.02)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, num_classes) of tokens (B, N, D)."""
        batch, count, dim = tokens.shape
        kv = self.key_value(self.norm_tokens(tokens)).view(batch, count, 2, self.heads, dim // self.heads)
        key, value = kv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, dim / heads)
        query = self.query.view(1, self.heads, 1, -1).expand(batch, -1, -1, -1)
        pooled = F.scaled_dot_product_attention(query, key, value).flatten(1)
        pooled = self.query + self.project(pooled)
        pooled = pooled + self.mlp(self.norm_pooled(pooled))
        return self.head(self.norm_out(pooled))


def fit_attentive(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    num_classes: int,
    rates: Sequence[float] = RATES,
    epochs: int = EPOCHS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> AttentiveFit:
    """Train an attentive probe on frozen tokens, and classify test images.

    AdamW with weight decay .01 and batch size 256; the rate warms up in the first tenth, then falls on a cosine. Each
    rate is tried on four fifths of the training images; the one with the best accuracy on the validation split
    (`validation_split`) is trained again on all of them. Without such a split the middle one is used.

    Args:
        train_x: (N, P, D) tokens, of any floating type, on the CPU.
        train_y: (N,) int64 labels.
        test_x: (M, P, D) tokens.
        num_classes: Number of classes.
        rates: Learning rates to choose from.
        epochs: Passes over the training tokens.
        seed: Of the weights and the order of the images.
        device: Where to train.

    Raises:
        ConfigError: If there are no rates.
    """
    if not rates:
        raise ConfigError("invalid `rates=[]`: must hold a number > 0, such as 1e-3.")
    held = validation_split(train_y)
    best, val = rates[len(rates) // 2], None
    if len(rates) > 1 and bool(held.any()):
        scores = []
        for rate in rates:
            head = _train(train_x[~held], train_y[~held], num_classes, rate, epochs, seed, device)
            scores.append(top_k_accuracy(_logits(head, train_x[held], device), train_y[held], 1))
        val = max(scores)
        best = rates[scores.index(val)]
    head = _train(train_x, train_y, num_classes, best, epochs, seed, device)
    return AttentiveFit(_logits(head, test_x, device), best, val)


def _train(
    x: Tensor, y: Tensor, num_classes: int, rate: float, epochs: int, seed: int, device: torch.device | str
) -> AttentiveHead:
    width = x.shape[2]
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        head = AttentiveHead(width, num_classes, next(h for h in (12, 8, 6, 4, 3, 2, 1) if width % h == 0)).to(device)
        matrices = [p for p in head.parameters() if p.ndim > 1]
        others = [p for p in head.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=rate)
        batch = min(BATCH, len(x))
        per_epoch = len(x) // batch
        steps = epochs * per_epoch
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, rate, total_steps=steps + 1, pct_start=WARMUP, cycle_momentum=False
        )
        generator = torch.Generator().manual_seed(seed)
        order = torch.empty(0, dtype=torch.int64)
        for step in range(steps):
            at = step % per_epoch * batch
            if at == 0:
                order = torch.randperm(len(x), generator=generator)
            rows = order[at : at + batch]
            loss = F.cross_entropy(head(x[rows].to(device).float()), y[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.no_grad()
def _logits(head: AttentiveHead, x: Tensor, device: torch.device | str) -> Tensor:
    return torch.cat([head(part.to(device).float()).cpu() for part in x.split(1024)])
