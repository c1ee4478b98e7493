"""Settings of the masks."""

from dataclasses import dataclass
from typing import Literal

from hjepa_pl.types import ConfigError


def _check_range(key: str, value: tuple[float, float], low: float, high: float) -> None:
    if len(value) != 2 or not low < value[0] <= value[1] <= high:
        raise ConfigError(f"{key} must be [low, high] with {low} < low <= high <= {high}, got {list(value)}.")


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """What is hidden from the context encoder and predicted."""

    kind: Literal["multiblock", "hierarchical", "random"] = "multiblock"
    """Rectangular target blocks (I-JEPA, arXiv:2301.08243, appendix A.1); such blocks for the coarsest token level,
    with smaller ones for the finer levels nested inside; or single cells anywhere."""
    num_targets: int | Literal["auto"] | None = None
    """Target blocks an image (multiblock; hierarchical: of each level); null or 'auto' is the fewest, for each size of
    block, that bring the visible patches to 0.3 to 0.4 of the grid, or as near as the grid allows (at most 8)."""
    target_scale: tuple[float, float] | None = None
    """Area of a block as a share of the grid; null is [0.15, 0.2] (multiblock; [0.2, 0.25] where no block of whole
    cells has that), or [0.2, 0.35] for the coarsest level's blocks (hierarchical)."""
    aspect_ratio: tuple[float, float] | None = None
    """Height over width of a block (hierarchical: of the coarsest level); null is [0.75, 1.5]."""
    max_visible: float | None = None
    """Most patches that the context encoder is given, as a share of the grid (not random): fewer are cheaper and
    harder; null is 0.4. I-JEPA's published masks leave about 0.3."""
    nest: float | None = None
    """Area of a level's block as a share of the next coarser level's, which holds it (hierarchical only); null is 0.5,
    snapped to whole cells."""
    ratio: float | None = None
    """Share of the patches that is hidden (random only); null is 0.6."""

    strategy: Literal["global_only", "global_with_local_context", "cross_crop_prediction"] = "global_only"
    """With local crops (data.multicrop): hide parts of the first view only; let the crops' tokens be context beside its
    visible patches; or hide parts of half of the crops too, and predict them from the rest."""

    def __post_init__(self) -> None:
        """Refuse ranges that are empty and keys that the kind does not read."""
        blocks = ("num_targets", "target_scale", "aspect_ratio", "max_visible")
        read = {"multiblock": blocks, "hierarchical": (*blocks, "nest"), "random": ("ratio",)}[self.kind]
        for name in (*blocks, "nest", "ratio"):
            if name not in read and getattr(self, name) is not None:
                raise ConfigError(
                    f"masks.{name} {getattr(self, name)} does nothing with masks.kind '{self.kind}'; remove it."
                )
        if isinstance(self.num_targets, int) and self.num_targets < 1:
            raise ConfigError(f"masks.num_targets must be at least 1, got {self.num_targets}.")
        if self.target_scale is not None:
            _check_range("masks.target_scale", self.target_scale, 0.0, 1.0)
        if self.aspect_ratio is not None:
            _check_range("masks.aspect_ratio", self.aspect_ratio, 0.0, float("inf"))
        if self.max_visible is not None and not 0 < self.max_visible <= 1:
            raise ConfigError(f"masks.max_visible must lie in (0, 1], got {self.max_visible}.")
        if self.nest is not None and not 0 < self.nest < 1:
            raise ConfigError(
                f"masks.nest must lie in (0, 1), got {self.nest}; "
                "for blocks of one size at all levels use masks.kind 'multiblock'."
            )
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise ConfigError(f"masks.ratio must lie in (0, 1), got {self.ratio}.")
