"""Settings of the regularisers."""

from dataclasses import dataclass
from typing import Literal

from hjepa_pl.types import ConfigError

PredictionKind = Literal["smooth_l1", "mse", "cosine"]
LevelScale = Literal["baseline", "raw"]


@dataclass(frozen=True, kw_only=True)
class RegularizerConfig:
    """One term that keeps a stream of embeddings from collapsing."""

    kind: Literal["sigreg", "vicreg"]
    """SIGReg (LeJEPA, arXiv:2511.08544) or VICReg (arXiv:2105.04906)."""
    stream: Literal["image", "tokens"] = "image"
    """Projections of the pooled views, or the context encoder's tokens, compared between images at one position."""
    weight: float | None = None
    """Factor of the term; null is 5 for sigreg (2 to 20 is sensible) and 1 for vicreg."""
    num_slices: int | None = None
    """Random directions (sigreg only); null is 256."""
    knots: int | None = None
    """Points of the quadrature on [0, 3] (sigreg only); null is 17."""
    invariance: float | None = None
    """Factor of the distance between views of one image (vicreg on image only); null is 25."""
    variance: float | None = None
    """Factor of the hinge on the standard deviation (vicreg only); null is 25."""
    covariance: float | None = None
    """Factor of the off-diagonal covariance (vicreg only); null is 1."""

    def __post_init__(self) -> None:
        """Refuse keys that the kind does not read, and weights that do nothing."""
        own = {"sigreg": ("num_slices", "knots"), "vicreg": ("invariance", "variance", "covariance")}
        for kind, names in own.items():
            given = [n for n in names if kind != self.kind and getattr(self, n) is not None]
            if given:
                raise ConfigError(f"regularizers.{given[0]} does nothing with kind '{self.kind}'; remove it.")
        if self.stream == "tokens" and self.invariance is not None:
            raise ConfigError("regularizers.invariance does nothing on stream 'tokens', which has one view; remove it.")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ConfigError(
                f"regularizers.weight must be a positive number, got {self.weight}; "
                "leave the term out to switch it off."
            )
        for name, least in (("num_slices", 1), ("knots", 2), ("invariance", 0), ("variance", 0), ("covariance", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"regularizers.{name} must be at least {least}, got {value}.")
        if self.kind == "vicreg" and self.variance == 0:
            raise ConfigError("regularizers.variance 0 leaves nothing that stops collapse; give a positive factor.")

    @property
    def name(self) -> str:
        """Name in logs, as in 'sigreg_image'."""
        return f"{self.kind}_{self.stream}"

    @property
    def factor(self) -> float:
        """The weight, with the kind's default."""
        return self.weight if self.weight is not None else {"sigreg": 5.0, "vicreg": 1.0}[self.kind]
