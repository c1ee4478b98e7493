"""What one batch gives: its crops, the terms of its loss, and what others read of it."""

from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_pl.models.predictor import Beside
from hjepa_pl.types import LevelState


class TokenStream(NamedTuple):
    """Embeddings that a regulariser compares between images at one position."""

    embedding: Tensor
    """(B, n, D), of this rank's images."""
    place: Tensor
    """(B, n) int64: their positions."""
    positions: int
    """Number of positions there are."""


class Crops(NamedTuple):
    """What the local crops give; nothing where a batch has none."""

    pooled: Tensor | None
    """(K, B, D): mean of each crop's patch tokens, for the image level."""
    beside: Beside | None
    """For the predictor; None with strategy 'global_only'."""
    targets: tuple[Tensor, ...]
    """(B, E, D) for each token level: the targets of `beside.asked`."""


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
