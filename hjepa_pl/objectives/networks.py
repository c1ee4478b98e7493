"""The networks of the hierarchical JEPA, built from settings."""

from typing import NamedTuple

from torch import nn

from hjepa_pl.models.base import Block, Encoder
from hjepa_pl.models.config import EncoderConfig, PredictorConfig, ProjectorConfig, PyramidConfig
from hjepa_pl.models.families import build_encoder
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.models.predictor import ContextFusion, Predictor
from hjepa_pl.models.projector import Projector
from hjepa_pl.models.pyramid import FeaturePyramid, PyramidHeads, finest_level, pyramid_blocks
from hjepa_pl.objectives.targets import last_blocks
from hjepa_pl.optim.ema import EMACallback


class Depths(NamedTuple):
    """Blocks of the encoders whose output each part reads, counted from 1; 'last' is after the final norm."""

    inner: tuple[int, ...]
    """Of token levels before the last block."""
    target: tuple[Block, ...]
    """Of the target encoder, for the token levels."""
    context: tuple[Block, ...]
    """Of the context encoder, for the predictor."""
    image: tuple[Block, ...]
    """Of the context encoder, for the image levels, the deepest last; or none."""
    pyramid: tuple[Block, ...]
    """Of either encoder, for the pyramid: three, or none."""


def plan_depths(
    token_levels: tuple[LevelConfig, ...],
    image_levels: tuple[LevelConfig, ...],
    depth: int,
    *,
    fused: bool,
    pyramid: bool,
    target_blocks: int = 1,
) -> Depths:
    """Return the blocks to read.

    Args:
        token_levels: Token levels.
        image_levels: Image levels, the deepest last.
        depth: Number of blocks of the encoder.
        fused: Whether the predictor reads all token levels' depths (`predictor.context=fused`).
        pyramid: Whether there is a pyramid.
        target_blocks: Number of blocks that each token level's target is the mean of.
    """
    averaged = {b for level in token_levels for b in last_blocks(level.block, target_blocks, depth)}
    inner = tuple(sorted({b for level in token_levels if (b := level.block) != "last"}))
    last: tuple[Block, ...] = ("last",) if any(level.block == "last" for level in token_levels) else ()
    context: tuple[Block, ...] = (*inner, "last") if fused else ("last",)
    pooled: tuple[Block, ...] = tuple(level.block for level in image_levels)
    of_targets = tuple(sorted(b for b in averaged if b != "last"))
    return Depths(inner, (*of_targets, *last), context, pooled, pyramid_blocks(depth) if pyramid else ())


class Networks(NamedTuple):
    """The networks of a module; None for those that its levels do not need."""

    context_encoder: Encoder
    target_encoder: Encoder | None
    predictor: Predictor | None
    fusion: ContextFusion | None
    projector: Projector | None
    inner_projectors: nn.ModuleDict | None
    pyramid: FeaturePyramid | None
    pyramid_heads: PyramidHeads | None
    target_pyramid: FeaturePyramid | None


def build_networks(
    encoder: EncoderConfig,
    predictor: PredictorConfig,
    projector: ProjectorConfig,
    pyramid: PyramidConfig | None,
    token_levels: tuple[LevelConfig, ...],
    image_levels: tuple[LevelConfig, ...],
    depths: Depths,
    *,
    moving_average: bool,
    crop_context: bool,
) -> Networks:
    """Build the networks, in an order in which an optional one does not change the initial weights of those before it.

    Args:
        encoder: Settings of the context encoder, and of its moving average.
        predictor: Settings of the predictor, for token levels.
        projector: Settings of the projector of each image level.
        pyramid: Settings of the pyramid, if there is one.
        token_levels: Token levels.
        image_levels: Image levels, the deepest last.
        depths: Blocks to read, of `plan_depths`.
        moving_average: Whether token levels have a target encoder.
        crop_context: Whether the predictor reads local crops too.
    """
    fused = predictor.context == "fused"
    # A block pooled for an image level has a norm without gains: they would duplicate the projector's first layer.
    pooled = [b for b in depths.image if b != "last"]
    normed = (*depths.inner, *pooled, *(b for b in (*depths.pyramid, *depths.target) if b != "last"))
    context = build_encoder(encoder, normed, affine=depths.inner if fused else ())
    width, grid, cells = context.embed_dim, context.grid, tuple(int(level.cell) for level in token_levels)
    networks = Networks(
        context_encoder=context,
        target_encoder=EMACallback.make_target(context) if token_levels and moving_average else None,
        predictor=Predictor(predictor, width, grid, cells, encoder.attention, crop_context) if token_levels else None,
        fusion=ContextFusion(width, len(depths.context)) if fused and token_levels else None,
        projector=Projector(projector, width) if image_levels else None,
        inner_projectors=None,
        pyramid=None,
        pyramid_heads=None,
        target_pyramid=None,
    )
    if len(image_levels) > 1:
        inner = {level.name: Projector(projector, width) for level in image_levels[:-1]}
        networks = networks._replace(inner_projectors=nn.ModuleDict(inner))
    if pyramid is None:
        return networks
    maps = FeaturePyramid(pyramid, width, cells[finest_level(token_levels)])
    heads = PyramidHeads(token_levels, grid, maps.dim, width)
    return networks._replace(pyramid=maps, pyramid_heads=heads, target_pyramid=EMACallback.make_target(maps))
