"""Settings of the regularisers."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from hjepa_pl.types import ConfigError

PredictionKind = Literal["smooth_l1", "mse", "cosine"]
LevelScale = Literal["baseline", "raw"]
Compare = Literal["mean", "pairwise", "none"]
"""What a view's projection is compared with: the mean of the full views, each other view, or nothing."""

OWN: dict[str, tuple[str, ...]] = {
    "sigreg": ("num_slices", "knots", "t_max"),
    "vicreg": ("invariance", "variance", "covariance"),
    "ntxent": ("temperature", "hard_negatives"),
}
"""The keys that each kind reads."""
_WEIGHTS = {"sigreg": 5.0, "vicreg": 1.0, "ntxent": 0.1}
_LEVEL = re.compile(r"(last|b[0-9]+)_c[0-9]+")


@dataclass(frozen=True, kw_only=True)
class RegularizerConfig:
    """One term that keeps a stream of embeddings from collapsing."""

    kind: Literal["sigreg", "vicreg", "ntxent"]
    """SIGReg (LeJEPA, arXiv:2511.08544), VICReg (arXiv:2105.04906) or NT-Xent (SimCLR, arXiv:2002.05709; beside a JEPA
    as in C-JEPA). NT-Xent sees angles only: a view loss beside it alone would shrink the projections towards zero."""
    stream: str = "image"
    """What it acts on: 'image', the projections of the pooled views; 'tokens', the context encoder's tokens; or a token
    level by its name in logs, as 'last_c1', whose predictions it takes. Tokens and predictions are compared between
    images at one position."""
    weight: float | None = None
    """Factor of the term; null is 5 for sigreg (2 to 20 is sensible), 1 for vicreg and 0.1 for ntxent."""
    num_slices: int | None = None
    """Random directions (sigreg only); null is 256."""
    knots: int | None = None
    """Points of the quadrature on [0, t_max] (sigreg only); null is 17."""
    t_max: float | None = None
    """End of the quadrature's range (sigreg only); null is 3."""
    invariance: float | None = None
    """Factor of the distance between views of one image (vicreg on image only); null is 25."""
    variance: float | None = None
    """Factor of the hinge on the standard deviation (vicreg only); null is 25."""
    covariance: float | None = None
    """Factor of the off-diagonal covariance (vicreg only); null is 1."""
    temperature: float | None = None
    """Divisor of the cosine similarities (ntxent only); null is 0.1."""
    hard_negatives: float | None = None
    """Concentration on the negatives that are nearest (ntxent only, arXiv:2010.04592: 0.5 to 2); null is off."""

    def __post_init__(self) -> None:
        """Refuse keys that kind or stream do not read, and numbers that mean or do nothing."""
        if self.kind not in OWN:
            raise ConfigError(f"regularizers.kind must be {' or '.join(map(repr, OWN))}, got {self.kind!r}.")
        for kind, names in OWN.items():
            given = [n for n in names if kind != self.kind and getattr(self, n) is not None]
            if given:
                raise ConfigError(f"regularizers.{given[0]} does nothing with kind '{self.kind}'; remove it.")
        self._check_stream()
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ConfigError(
                f"regularizers.weight must be a positive number, got {self.weight}; "
                "leave the term out to switch it off."
            )
        for name, least in (("num_slices", 1), ("knots", 5), ("invariance", 0), ("variance", 0), ("covariance", 0)):
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise ConfigError(f"regularizers.{name} must be at least {least} and finite, got {value}.")
        for name, mend in (("t_max", "3"), ("temperature", "0.1"), ("hard_negatives", "null, which is off,")):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"regularizers.{name} must be a positive number, got {value}; {mend} would do.")
        if self.t_max is not None and not 1 <= self.t_max <= 10:
            raise ConfigError(
                f"regularizers.t_max must lie in [1, 10], got {self.t_max}: below it a Gaussian looks like any code, "
                "beyond it there is nothing but noise; 3 would do."
            )
        if self.kind == "vicreg" and self.variance == 0:
            raise ConfigError("regularizers.variance 0 leaves nothing that stops collapse; give a positive factor.")

    def _check_stream(self) -> None:
        """Refuse a stream that is none, and what needs views on a stream that has one."""
        if self.stream == "image":
            return
        if self.stream != "tokens" and not _LEVEL.fullmatch(self.stream):
            raise ConfigError(
                f"regularizers.stream {self.stream!r} is none; 'image', 'tokens', or the name of a token level, as "
                "'last_c1' or 'b4_c2', would do."
            )
        if self.kind == "ntxent":
            raise ConfigError(
                f"regularizers.kind 'ntxent' compares views, and stream '{self.stream}' has one; set stream to "
                "'image', or take kind 'sigreg' or 'vicreg'."
            )
        if self.invariance is not None:
            raise ConfigError(
                f"regularizers.invariance does nothing on stream '{self.stream}', which has one view; remove it."
            )

    @property
    def name(self) -> str:
        """Name in logs, as in 'sigreg_image'."""
        return f"{self.kind}_{self.stream}"

    @property
    def factor(self) -> float:
        """The weight, with the kind's default."""
        return self.weight if self.weight is not None else _WEIGHTS[self.kind]

    @property
    def compares_views(self) -> bool:
        """Whether the term draws the views of one image together by itself."""
        return self.stream == "image" and (self.kind == "ntxent" or (self.kind == "vicreg" and self.invariance != 0))

    @property
    def options(self) -> dict[str, Any]:
        """The kind's own keys that were given, as arguments of its function."""
        return {name: value for name in OWN[self.kind] if (value := getattr(self, name)) is not None}


def least_images(config: RegularizerConfig) -> int:
    """Return how many images, over all ranks, a term needs to say anything.

    Two for every kind: a variance, a distribution, a negative and a comparison at one position all want another image.
    """
    return {"sigreg": 2, "vicreg": 2, "ntxent": 2}[config.kind]
