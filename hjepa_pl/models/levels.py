"""Levels of the hierarchy."""

from dataclasses import dataclass
from typing import Any, Literal

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import from_plain_list


@dataclass(frozen=True, kw_only=True)
class LevelConfig:
    """One level of the hierarchy: which depth of the target encoder, how coarse, how much."""

    block: int | Literal["last"] = "last"
    """Depth of the target: the output after this block, counted from 1, or 'last' (after the final norm). Image level:
    depth of the patch tokens that are pooled, of an inner block after a norm of its own."""
    cell: int | Literal["image"] = 1
    """Side of the cells that the target is averaged over, in patches; 'image' is the pooled image."""
    weight: float = 1.0
    """Weight of the level's loss."""
    masked_view: Literal["add", "replace"] | None = None
    """Image level beside token levels: the visible patches, encoded for the token levels anyway, are a view too (as in
    MSN, arXiv:2204.07141), beside the full views or in place of the first, which is then not encoded in full."""

    compare: Literal["mean", "pairwise", "none"] = "mean"
    """Image level: distance of every view's projection from the mean of the full views ('mean', LeJEPA), of every two
    views from each other ('pairwise': full with full and full with partial ones), or 'none', where a regulariser
    that compares views (ntxent, vicreg) is the whole objective, as published."""

    def __post_init__(self) -> None:
        """Refuse depths, cells and weights that mean nothing."""
        if self.block != "last" and self.block < 1:
            raise ConfigError(f"levels.block counts blocks from 1 or is 'last', got {self.block}.")
        if self.cell != "image" and self.cell < 1:
            raise ConfigError(f"levels.cell must be at least 1 patch or 'image', got {self.cell}.")
        for key, default in (("masked_view", None), ("compare", "mean")):
            if self.cell != "image" and getattr(self, key) != default:
                raise ConfigError(
                    f"levels.{key} '{getattr(self, key)}' does nothing on cell {self.cell}; "
                    "give it to the level whose cell is 'image'."
                )
        if self.compare == "none" and self.weight != 1.0:
            raise ConfigError(
                f"levels.weight {self.weight} does nothing with levels.compare 'none'; set the regularizers' weights."
            )
        if not 0 < self.weight < float("inf"):
            raise ConfigError(
                f"levels.weight must be a positive number, got {self.weight}; leave the level out to switch it off."
            )

    @property
    def name(self) -> str:
        """Name in logs: 'image', or depth and cell, as in 'last_c2' and 'b4_c1'."""
        if self.cell == "image":
            return "image"
        return f"{'last' if self.block == 'last' else f'b{self.block}'}_c{self.cell}"


def presets() -> dict[str, tuple[LevelConfig, ...]]:
    """Return the hierarchies that a word stands for: 'flat' is I-JEPA's one level, 'three' patch, 2 x 2 and image.

    The weights and the masked view of 'three' are those of the hierarchy that did best in the README's ablation.
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
    """Return levels from a preset's name or a list of them.

    Raises:
        ConfigError: If it is neither.
    """
    if isinstance(levels, str):
        if levels not in presets():
            raise ConfigError(
                f"levels '{levels}' is no preset; {' or '.join(map(repr, presets()))} would do, or a list."
            )
        return presets()[levels]
    if not isinstance(levels, list | tuple):
        raise ConfigError(f"levels must be {' or '.join(map(repr, presets()))} or a list of levels, got {levels!r}.")
    return from_plain_list(LevelConfig, levels, "levels")


def split_levels(levels: tuple[LevelConfig, ...]) -> tuple[tuple[LevelConfig, ...], LevelConfig | None]:
    """Separate the token levels from the image level.

    Raises:
        ConfigError: If there is no level, or two that are the same.
    """
    if not levels:
        raise ConfigError("levels is empty; give at least one, for example [{block: last, cell: 1}].")
    names = [level.name for level in levels]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise ConfigError(f"levels holds '{twice}' twice; give each depth and cell once and set its weight instead.")
    image = next((level for level in levels if level.cell == "image"), None)
    return tuple(level for level in levels if level is not image), image
