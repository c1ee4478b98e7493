"""Records of one step: embeddings, loss terms, and what callbacks read."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_pl.models.base import Block
from hjepa_pl.models.predictor import CropContext
from hjepa_pl.types import LevelState


class TokenStream(NamedTuple):
    """Embeddings that a regularizer compares between images at one position; of several masks, those of the first."""

    embedding: Tensor
    """(B, n, D), of this rank's images."""
    position: Tensor
    """(B, n) int64: position of each embedding on its grid."""
    positions: int
    """Number of positions of the grid."""


class EncodedCrops(NamedTuple):
    """Local crops of a batch, encoded; empty for a batch without crops."""

    pooled: Mapping[Block, Tensor] = {}
    """(K, B, D) by block of the image levels: mean of each crop's patch tokens; empty without an image level."""
    context: CropContext | None = None
    """Tokens and queries for the predictor; None with strategy 'global_only'."""
    targets: tuple[Tensor, ...] = ()
    """(B, E, D) for each token level: targets of the queries in `context`."""


class Projections(NamedTuple):
    """Projected embeddings, at one image level, of the views of all ranks' images."""

    embedding: Tensor
    """(V, B of all ranks, P); the partial views come first."""
    partial: int
    """Number of partial views: visible patches or local crops, which show a part of the image."""
    name: str
    """Of the level in logs: 'image' for the deepest."""
    weight: float
    """Factor of the level's regularizers; 1 for the deepest level."""


class StepRecord:
    """The terms of one step's loss. Objectives add to it; the loss, the logs and the callbacks read it."""

    def __init__(self) -> None:
        self.terms: dict[str, Tensor] = {}
        """Each term unweighted and, where its weight is not 1, weighted."""
        self.streams: dict[str, TokenStream] = {}
        """The context's tokens, 'tokens', and each token level's predictions, by its name."""
        self.levels: dict[str, LevelState] = {}
        """Prediction and target of each token level, without gradient."""
        self.n_ep: dict[str, Tensor] = {}
        """SIGReg of the projections times the number of images, by its name in logs: about 1 where they are
        Gaussian."""
        self._weighted: list[Tensor] = []
        self._by_image: list[tuple[float | Tensor, Callable[[], Tensor]]] = []

    def add(
        self, name: str, value: Tensor, weight: float | Tensor, by_image: Callable[[], Tensor] | None = None
    ) -> None:
        """Add a term of the loss.

        Args:
            name: In logs.
            value: Scalar.
            weight: Its factor in the loss.
            by_image: Returns the term of each of this rank's images, (B,), whose mean is `value`; None for a
                regularizer, which is defined on the batch only.
        """
        self.terms[name] = value
        self._weighted.append(weight * value)
        if by_image is not None:
            self._by_image.append((weight, by_image))
        if isinstance(weight, Tensor) or weight != 1.0:
            self.terms[f"{name}_weighted"] = self._weighted[-1]

    @torch.no_grad()
    def prediction_by_image(self) -> Tensor | None:
        """Return each image's weighted prediction loss, (B,): all terms but the regularizers. None if there are none.

        These are the distances at the token levels, in the pyramid and between views.
        """
        by_image = [weight * values() for weight, values in self._by_image]
        return torch.stack(by_image).sum(dim=0) if by_image else None

    def total(self) -> Tensor:
        """Return the loss: the sum of the weighted terms."""
        return torch.stack(self._weighted).sum()
