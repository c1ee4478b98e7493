"""The networks of the hierarchical JEPA, made from its settings."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from hjepa_pl.models.base import Block, Encoder
from hjepa_pl.models.families import build_encoder
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.models.predictor import ContextFusion, Predictor
from hjepa_pl.models.projector import Projector
from hjepa_pl.models.pyramid import FeaturePyramid, PyramidHeads, finest_level, pyramid_blocks
from hjepa_pl.optim.ema import EMACallback


class Depths(NamedTuple):
    """Which blocks of the encoder each reader wants the output of."""

    inner: tuple[int, ...]
    """Depths of levels before the last block."""
    target: tuple[Block, ...]
    """Of the target encoder, for the levels."""
    context: tuple[Block, ...]
    """Of the context encoder, for the predictor."""
    image: tuple[Block, ...]
    """Of the context encoder, for the image level: one, or none."""
    pyramid: tuple[Block, ...]
    """Of either, for the pyramid."""


def plan_depths(
    levels: tuple[LevelConfig, ...], image: LevelConfig | None, settings: Mapping[str, Any], depth: int
) -> Depths:
    """Return which blocks are read, of an encoder of `depth` blocks with these levels."""
    inner = tuple(sorted({b for level in levels if (b := level.block) != "last"}))
    last: tuple[Block, ...] = ("last",) if any(level.block == "last" for level in levels) else ()
    context: tuple[Block, ...] = (*inner, "last") if settings["predictor"].context == "fused" else ("last",)
    pooled: tuple[Block, ...] = () if image is None else (image.block,)
    return Depths(inner, (*inner, *last), context, pooled, pyramid_blocks(depth) if settings["pyramid"] else ())


class Networks(NamedTuple):
    """What the module holds; None where the levels need none."""

    context_encoder: Encoder
    target_encoder: Encoder | None
    predictor: Predictor | None
    fusion: ContextFusion | None
    projector: Projector | None
    pyramid: FeaturePyramid | None
    pyramid_heads: PyramidHeads | None
    target_pyramid: FeaturePyramid | None


def build_networks(
    settings: Mapping[str, Any], levels: tuple[LevelConfig, ...], image: LevelConfig | None, depths: Depths
) -> Networks:
    """Make the networks, in an order in which what is added leaves the earlier ones' weights as they are without."""
    encoder, predictor, pyramid = settings["encoder"], settings["predictor"], settings["pyramid"]
    fused, average = predictor.context == "fused", bool(levels) and settings["ema"] is not None
    pooled = [b for b in depths.image if b != "last"]  # its gains would be the projector's first layer's twice
    normed = (*depths.inner, *pooled, *(b for b in depths.pyramid if b != "last"))
    context = build_encoder(encoder, normed, affine=depths.inner if fused else ())
    width, grid, cells = context.embed_dim, context.grid, tuple(int(level.cell) for level in levels)
    crops = settings["masks"].strategy != "global_only"
    made = Networks(
        context_encoder=context,
        target_encoder=EMACallback.make_target(context) if average else None,
        predictor=Predictor(predictor, width, grid, cells, encoder.attention, crops) if levels else None,
        fusion=ContextFusion(width, len(depths.context)) if fused and levels else None,
        projector=Projector(settings["projector"], width) if image is not None else None,
        pyramid=None,
        pyramid_heads=None,
        target_pyramid=None,
    )
    if pyramid is None:
        return made
    maps = FeaturePyramid(pyramid, width, cells[finest_level(levels)])
    heads = PyramidHeads(levels, grid, maps.dim, width)
    return made._replace(pyramid=maps, pyramid_heads=heads, target_pyramid=EMACallback.make_target(maps))
