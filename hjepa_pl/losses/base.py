"""Base class of the regularizers."""

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt, Lt
from torch import Tensor

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import Hint

Weight = Annotated[float, Gt(0), Lt(float("inf")), Hint("remove the term to turn it off")]
"""Weight of a term in the loss."""
_LEVEL = re.compile(r"(last|b[0-9]+)_c[0-9]+")


@dataclass(frozen=True, kw_only=True)
class Regularizer:
    """A term that keeps embeddings from collapsing: its settings are its fields, calling it computes it.

    A new one is a subclass with the decorator `@settings("regularizers")`, its own fields with bounds and real
    defaults, and `__call__`. A config names it by its key in `REGULARIZERS`, or by its import path.
    """

    kind: ClassVar[str]
    """Name in configs and logs: that of `REGULARIZERS`, or the import path of a class outside the package."""
    min_images: ClassVar[int] = 2
    """Fewest images, over all ranks, that the term is defined for."""
    needs_views: ClassVar[bool] = False
    """True if it compares several views of an image: it acts on the projections only."""
    contrastive: ClassVar[bool] = False
    """True if it pushes different images apart as negatives, which mixed images (Mixup, CutMix) cannot be."""
    scale_invariant: ClassVar[bool] = False
    """True if it does not depend on the scale of the embeddings, which a view loss then shrinks to zero."""

    stream: str = "image"
    """Embeddings that it acts on: 'image', the projections of the pooled views at each image level; 'tokens', the
    context encoder's tokens; or the predictions of a token level, by its name in logs, such as 'last_c1'. Tokens and
    predictions are compared between images at one position."""
    weight: Weight = 1.0
    """Weight of the term in the loss."""

    def __init_subclass__(cls) -> None:
        """Name a class outside the package by its import path."""
        if "kind" not in vars(cls):
            cls.kind = f"{cls.__module__}.{cls.__qualname__}"

    def __post_init__(self) -> None:
        """Reject a stream that does not exist, or that has one view where several are compared."""
        if self.stream not in ("image", "tokens") and not _LEVEL.fullmatch(self.stream):
            raise ConfigError(
                f"invalid `regularizers.stream={self.stream}`: must be image, tokens or the name of a token level, "
                "such as last_c1 or b4_c2."
            )
        if self.stream != "image" and self.needs_views:
            raise ConfigError(
                f"invalid `regularizers.kind={self.kind}`: compares views, and stream {self.stream} has one; set "
                "stream to image, or kind to sigreg or vicreg."
            )

    def __call__(self, embeddings: Tensor, *, partial: int = 0, valid: Tensor | None = None, key: int = 0) -> Tensor:
        """Return the term, without its weight.

        Args:
            embeddings: (V, B, D) views of B images of all ranks, or (B, D), one view; float32 or float64.
            partial: Number of leading views that show a part of the image only; they are not compared with one another.
            valid: (B,), 1 for rows that count and 0 for others, whose values are arbitrary but finite; None counts all.
            key: Counter of random draws; another one each step.

        Returns:
            Scalar.
        """
        raise NotImplementedError

    @property
    def name(self) -> str:
        """Name in logs: 'sigreg_image'."""
        return self.name_at(self.stream)

    def name_at(self, stream: str) -> str:
        """Return the name in logs of the term on a stream, or at an image level such as 'b2_image'."""
        return f"{self.kind.rpartition('.')[2]}_{stream}"

    @property
    def compares_views(self) -> bool:
        """True if the term by itself draws the views of one image together."""
        return self.needs_views


def as_views(embeddings: Tensor) -> Tensor:
    """Return (B, D) embeddings as one view, (1, B, D); (V, B, D) as they are."""
    if embeddings.ndim not in (2, 3):
        raise ValueError(f"embeddings must be (V, B, D) or (B, D), got shape {tuple(embeddings.shape)}.")
    return embeddings[None] if embeddings.ndim == 2 else embeddings
