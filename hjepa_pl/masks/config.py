"""Settings of the masks."""

from typing import Annotated, Any, Literal

from annotated_types import Gt, Le, Lt

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import Count, Hint, Pair, Positive, settings
from hjepa_pl.utils.wording import as_typed

_OpenUnit = Annotated[float, Gt(0), Lt(1)]
_Fraction = Annotated[float, Gt(0), Le(1)]


@settings("masks")
class MaskConfig:
    """What is hidden from the context encoder and predicted.

    One class for all kinds, so that `--model.masks.ratio=0.5` sets one key, whichever file gave the kind.
    """

    kind: str = "multiblock"
    """multiblock: rectangular target blocks (I-JEPA, arXiv:2301.08243, appendix A.1); hierarchical: such blocks for the
    coarsest token level, with smaller ones for the finer levels nested inside; random: single cells; inverse_block: all
    but one block (data2vec 2.0, arXiv:2212.07525)."""
    num_targets: Count | Literal["auto"] = "auto"
    """Target blocks per image (multiblock; hierarchical: of each level); auto is the fewest, for each size of block,
    that bring the visible patches to 0.3 to 0.4 of the grid, or as near as the grid allows (at most 8)."""
    target_scale: Pair[_Fraction] | None = None
    """Area of a block as a fraction of the grid, [low, high]; null is [0.15, 0.2] (multiblock; [0.2, 0.25] if no block
    of whole cells has that), or [0.2, 0.35] for the coarsest level's blocks (hierarchical)."""
    aspect_ratio: Pair[Positive] = (0.75, 1.5)
    """Height over width of a block, [low, high] (multiblock; hierarchical: of the coarsest level; inverse_block: of the
    visible block)."""
    max_visible: _Fraction | None = None
    """Largest fraction of the patches that the context encoder gets (multiblock, hierarchical): fewer are cheaper and
    harder; null is 0.4, or more where the grid is small. I-JEPA's published masks leave about 0.3."""
    nest: Annotated[float, Gt(0), Lt(1), Hint("for blocks of one size at all levels set masks.kind to multiblock")] = (
        0.5
    )
    """Area of a level's block as a fraction of the next coarser level's, which contains it (hierarchical), snapped to
    whole cells."""
    ratio: _OpenUnit = 0.6
    """Fraction of the patches that is hidden (random, inverse_block)."""
    predicted: _Fraction = 0.75
    """Fraction of the cells outside the visible block that is predicted (inverse_block): fewer are cheaper."""
    per_image: Count = 1
    """Masks of each image in a step: the targets are computed once, each mask's visible patches are encoded and predict
    its own hidden ones, and the loss is the mean (multi-mask training of data2vec 2.0, arXiv:2212.07525; 16 in its code
    for images). With levels.masked_view each mask's visible patches are a view."""
    options: dict[str, Any] | None = None
    """Keys of a mask generator outside the package."""

    strategy: Literal["global_only", "global_with_local_context", "cross_crop_prediction"] = "global_only"
    """With local crops (data.multicrop): hide parts of the first view only; let the crops' tokens be context in
    addition to its visible patches; or hide parts of half of the crops too, and predict them from the rest."""

    def __post_init__(self) -> None:
        """Reject ranges that are empty."""
        for name in ("target_scale", "aspect_ratio"):
            value = getattr(self, name)
            if value is not None and value[0] > value[1]:
                raise ConfigError(f"invalid `masks.{name}={as_typed(value)}`: must be [low, high] with low <= high.")
