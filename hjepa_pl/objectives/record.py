"""What one batch gives: its crops, the terms of its loss, and what others read of it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_pl.models.predictor import CropContext
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
    beside: CropContext | None
    """For the predictor; None with strategy 'global_only'."""
    targets: tuple[Tensor, ...]
    """(B, E, D) for each token level: the targets of `beside.queries`."""


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
        self._by_image: list[tuple[float | Tensor, Callable[[], Tensor]]] = []

    def add(
        self, name: str, value: Tensor, weight: float | Tensor, by_image: Callable[[], Tensor] | None = None
    ) -> None:
        """Add a term of the loss.

        Args:
            name: In logs.
            value: A scalar.
            weight: Its factor in the loss.
            by_image: Computes (B,) shares of this rank's images, of which a term that is a mean over images is made;
                None for a regulariser, which is of the batch as a whole.
        """
        self.terms[name] = value
        self._weighted.append(weight * value)
        if by_image is not None:
            self._by_image.append((weight, by_image))
        if isinstance(weight, Tensor) or weight != 1.0:
            self.terms[f"{name}_weighted"] = self._weighted[-1]

    @torch.no_grad()
    def prediction_by_image(self) -> Tensor | None:
        """Return each image's weighted prediction losses, (B,): what is left of the loss without regularisers.

        These are the distances at the token levels, in the pyramid and between views. None if there is none of them.
        """
        shares = [weight * of_images() for weight, of_images in self._by_image]
        return torch.stack(shares).sum(dim=0) if shares else None

    def total(self) -> Tensor:
        """Return the loss."""
        return torch.stack(self._weighted).sum()
