"""The networks of the hierarchical JEPA, made from its settings."""

from typing import NamedTuple

from hjepa_pl.models.encoder import Block, VisionEncoder
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.models.predictor import ContextFusion, Predictor
from hjepa_pl.models.projector import Projector
from hjepa_pl.models.pyramid import FeaturePyramid, PyramidHeads, finest_level, pyramid_blocks
from hjepa_pl.models.settings import EncoderConfig, PredictorConfig, ProjectorConfig, PyramidConfig
from hjepa_pl.optim.ema import EMACallback


class Depths(NamedTuple):
    """Which blocks of the encoder each reader wants the output of."""

    inner: tuple[int, ...]
    """Depths of levels before the last block."""
    target: tuple[Block, ...]
    """Of the target encoder, for the levels."""
    context: tuple[Block, ...]
    """Of the context encoder, for the predictor."""
    pyramid: tuple[Block, ...]
    """Of either, for the pyramid."""


def plan_depths(levels: tuple[LevelConfig, ...], fused: bool, pyramid: bool, depth: int) -> Depths:
    """Return which blocks are read, of an encoder of `depth` blocks with these token levels."""
    inner = tuple(sorted({b for level in levels if (b := level.block) != "last"}))
    last: tuple[Block, ...] = ("last",) if any(level.block == "last" for level in levels) else ()
    context: tuple[Block, ...] = (*inner, "last") if fused else ("last",)
    return Depths(inner, (*inner, *last), context, pyramid_blocks(depth) if pyramid else ())


class Networks(NamedTuple):
    """What the module holds; None where the levels need none."""

    context_encoder: VisionEncoder
    target_encoder: VisionEncoder | None
    predictor: Predictor | None
    fusion: ContextFusion | None
    projector: Projector | None
    pyramid: FeaturePyramid | None
    pyramid_heads: PyramidHeads | None
    target_pyramid: FeaturePyramid | None


def build_networks(
    encoder: EncoderConfig,
    predictor: PredictorConfig,
    projector: ProjectorConfig,
    pyramid: PyramidConfig | None,
    levels: tuple[LevelConfig, ...],
    has_image: bool,
    depths: Depths,
) -> Networks:
    """Make the networks, in an order in which what is added leaves the earlier ones' weights as they are without."""
    fused = predictor.context == "fused"
    normed = (*depths.inner, *(b for b in depths.pyramid if b != "last"))
    context = VisionEncoder(encoder, normed, affine=depths.inner if fused else ())
    width, grid, cells = context.embed_dim, context.grid, tuple(int(level.cell) for level in levels)
    made = Networks(
        context_encoder=context,
        target_encoder=EMACallback.make_target(context) if levels else None,
        predictor=Predictor(predictor, width, grid, cells, encoder.attention) if levels else None,
        fusion=ContextFusion(width, len(depths.context)) if fused and levels else None,
        projector=Projector(projector, width) if has_image else None,
        pyramid=None,
        pyramid_heads=None,
        target_pyramid=None,
    )
    if pyramid is None:
        return made
    maps = FeaturePyramid(pyramid, width, cells[finest_level(levels)])
    heads = PyramidHeads(levels, grid, maps.dim, width)
    return made._replace(pyramid=maps, pyramid_heads=heads, target_pyramid=EMACallback.make_target(maps))
