"""What one batch has given so far: the terms of the loss, and what others read."""

from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_pl.types import LevelState


class TokenStream(NamedTuple):
    """Embeddings that a regulariser compares between images at one position."""

    embedding: Tensor
    """(B, n, D), of this rank's images."""
    index: Tensor
    """(B, n) int64: their positions."""
    positions: int
    """Number of positions there are."""


class StepRecord:
    """Filled by the levels in turn, read by the regularisers, the callbacks and the loss."""

    def __init__(self) -> None:
        self.terms: dict[str, Tensor] = {}
        """Every term, raw, and weighted where the weight is not 1."""
        self.streams: dict[str, TokenStream] = {}
        """The context's tokens, 'tokens', and each token level's predictions, by its name."""
        self.levels: dict[str, LevelState] = {}
        """What each token level predicted, without gradient."""
        self.n_ep: Tensor | None = None
        """SIGReg of the projections times the images: about 1 where they are Gaussian."""
        self._weighted: list[Tensor] = []

    def add(self, name: str, value: Tensor, weight: float | Tensor) -> None:
        """Add a term of the loss, a scalar."""
        self.terms[name] = value
        self._weighted.append(weight * value)
        if isinstance(weight, Tensor) or weight != 1.0:
            self.terms[f"{name}_weighted"] = self._weighted[-1]

    def total(self) -> Tensor:
        """Return the loss."""
        return torch.stack(self._weighted).sum()
