"""Levels of the hierarchy."""

from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Gt, Lt

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import Count, Hint, PositiveFraction, from_plain_list, invalid, settings
from hjepa_pl.utils.wording import as_typed

_OF_DEEPEST = (("masked_view", None), ("compare", "mean"), ("keep", 1.0))
"""Keys of the deepest image level, and their defaults."""


@settings("levels")
class LevelConfig:
    """One level of the hierarchy: the depth and coarseness of its targets, and its weight."""

    block: Count | Literal["last"] = "last"
    """Depth of the target: the output after this block, counted from 1, or 'last' (after the final norm). Image level:
    depth of the patch tokens that are pooled, after a norm of its own if not 'last'. Several image levels of different
    depths: each compares the same views through a projector of its own; `masked_view`, `compare` and `keep` are those
    of the deepest."""
    cell: Count | Literal["image"] = 1
    """Height and width in patches of the cells that the target is averaged over; 'image' is the pooled image."""
    weight: Annotated[float, Gt(0), Lt(float("inf")), Hint("remove the level to turn it off")] = 1.0
    """Weight of the level's loss; of an image level before the deepest, of its regularizers too."""
    masked_view: Literal["add", "replace"] | None = None
    """Image level with token levels: the visible patches, which the token levels encode anyway, are a view too (as in
    MSN, arXiv:2204.07141), in addition to the full views ('add') or instead of the first ('replace')."""
    compare: Literal["mean", "pairwise", "none"] = "mean"
    """Image level: distance of every view's projection to the mean of the full views ('mean', LeJEPA), between every
    two views ('pairwise': full with full and full with partial ones), or 'none', where a regularizer that compares
    views (ntxent, vicreg) is the whole objective, as published."""
    keep: PositiveFraction = 1.0
    """Image level: fraction of the patches of each full view that is encoded, drawn at random for each image and view
    (MSN, arXiv:2204.07141, section 3, and FLIP, arXiv:2212.00794, section 3): .5 halves their tokens. Local crops
    and the masked view are not thinned."""

    def __post_init__(self) -> None:
        """Reject keys of the image level on token levels, and a weight without a loss."""
        for key, default in _OF_DEEPEST:
            if self.cell != "image" and getattr(self, key) != default:
                raise invalid(
                    f"levels.{key}",
                    getattr(self, key),
                    f"has no effect with levels.cell={self.cell}; set it on the level with cell: image.",
                )
        if self.compare == "none" and self.weight != 1.0:
            raise invalid(
                "levels.weight",
                self.weight,
                "has no effect with levels.compare=none; set the weights of the regularizers instead.",
            )

    def kept(self, patches: int) -> int:
        """Return how many of a full view's patches the image level encodes: `keep` of them, rounded."""
        return round(self.keep * patches)

    @property
    def name(self) -> str:
        """Depth and cell, as in 'last_c2', 'b4_c1' and 'b2_image'. In logs the deepest image level is 'image'."""
        depth = "last" if self.block == "last" else f"b{self.block}"
        return f"{depth}_image" if self.cell == "image" else f"{depth}_c{self.cell}"


def presets() -> dict[str, tuple[LevelConfig, ...]]:
    """Return the preset hierarchies: 'flat' is I-JEPA's one level, 'three' is patch, 2 x 2 cell and image.

    Why these weights and the masked view of 'three': docs/studies.md.
    """
    return {
        "flat": (LevelConfig(cell=1),),
        "three": (
            LevelConfig(cell=1, weight=0.1),
            LevelConfig(cell=2, weight=0.1),
            LevelConfig(cell="image", masked_view="replace"),
        ),
    }


def read_levels(levels: Any) -> tuple[LevelConfig, ...]:
    """Return levels from a preset's name or a list of levels.

    Raises:
        ConfigError: If it is neither.
    """
    if isinstance(levels, str) and levels in presets():
        return presets()[levels]
    if not isinstance(levels, list | tuple):
        raise invalid("levels", levels, f"must be {' or '.join(presets())}, or a list of levels.")
    return from_plain_list(LevelConfig, levels, "levels")


class Levels(NamedTuple):
    """The levels of a hierarchy by kind."""

    token: tuple[LevelConfig, ...]
    """Token levels."""
    inner_images: tuple[LevelConfig, ...]
    """Image levels before the deepest, by depth."""
    image: LevelConfig | None
    """The deepest image level; None without any."""


def split_levels(levels: tuple[LevelConfig, ...]) -> Levels:
    """Separate the token levels from the image levels.

    Raises:
        ConfigError: If there is no level, a level twice, or an inner image level with keys of the deepest.
    """
    if not levels:
        raise ConfigError("invalid `levels=[]`: must hold at least one level, for example [{block: last, cell: 1}].")
    names = [level.name for level in levels]
    twice = next((level for level in levels if names.count(level.name) > 1), None)
    if twice:
        raise ConfigError(
            f"invalid `levels`: {{block: {as_typed(twice.block)}, cell: {as_typed(twice.cell)}}} is listed twice; list "
            "it once and set its weight."
        )
    images = sorted((level for level in levels if level.cell == "image"), key=lambda level: _depth(level.block))
    token = tuple(level for level in levels if level.cell != "image")
    for level in images[:-1]:
        for key, default in _OF_DEEPEST:
            if getattr(level, key) != default:
                raise invalid(
                    f"levels.{key}",
                    getattr(level, key),
                    f"is for the deepest image level; set it on the one with block: {images[-1].block}.",
                )
    return Levels(token, tuple(images[:-1]), images[-1] if images else None)


def _depth(block: int | str) -> float:
    return float("inf") if isinstance(block, str) else block
