"""Combinations of a module's settings: each error is one sentence with the key, its value and a fix."""

import math
from collections.abc import Sequence

from hjepa_pl.losses import Regularizer
from hjepa_pl.masks import MaskGenerator, build_masks, find_masks
from hjepa_pl.models.families import EncoderShape
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.models.pyramid import STRIDES
from hjepa_pl.modules.config import ModuleSettings
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import invalid


def check_model(settings: ModuleSettings, shape: EncoderShape) -> None:
    """Check that levels, regularizers and networks go together.

    Raises:
        ConfigError: Naming the first that does not.
    """
    levels = settings.token_levels
    for level in levels:
        if level.block != "last" and level.block >= shape.depth:
            raise ConfigError(f"invalid `levels.block={level.block}`: must be 1 to {shape.depth - 1}, or last.")
        depth = shape.depth if level.block == "last" else level.block
        if settings.target_blocks > depth:
            raise ConfigError(
                f"invalid `target_blocks={settings.target_blocks}`: must be at most {depth}, the number of blocks up "
                f"to levels.block={level.block}."
            )
    names = [term.name for term in settings.regularizers]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise ConfigError(f"invalid `regularizers`: holds {twice} twice; keep one, with the sum of the weights.")
    _check_streams(settings.regularizers, levels, settings.image_level)
    for inner in settings.inner_images:
        _check_image_block(inner, shape)
    if settings.image_level is not None:
        _check_image_level(settings.image_level, settings.regularizers, levels, shape)
        check_keep(settings.image_level, shape.grid)
    _check_ema(settings)
    _check_unused(settings)
    _check_predictor(settings)
    if settings.pyramid is not None:
        _check_pyramid(levels, shape)


def check_keep(image: LevelConfig, grid: tuple[int, int], where: str = "") -> None:
    """Check that `levels.keep` keeps some patches of a full view, and not all of them.

    Args:
        image: The image level.
        grid: Rows and columns of patches of a full view.
        where: What has this grid, for the message.

    Raises:
        ConfigError: If it keeps none or, unless it is 1, all.
    """
    patches = grid[0] * grid[1]
    kept = image.kept(patches)
    if kept == 0 or (kept == patches and image.keep < 1):
        few = f"{1 / patches:.4f} to {math.floor(1e4 * (patches - 1) / patches) / 1e4:g}, or " if patches > 1 else ""
        raise invalid(
            "levels.keep", image.keep, f"keeps {kept or 'none'} of the {patches} patches{where}; use {few}1 for all."
        )


def make_masks(settings: ModuleSettings, shape: EncoderShape) -> MaskGenerator | None:
    """Return the masks of the token levels; None without any.

    Raises:
        ConfigError: If they are impossible, or `predictor.targets=separate` has one target block only.
    """
    if not settings.token_levels:
        return None
    cells, targets = tuple(int(level.cell) for level in settings.token_levels), settings.predictor.targets
    masks = build_masks(settings.masks, shape.grid, cells, settings.seed, targets == "joint")
    if targets == "separate" and all(shape.blocks == 1 for shape in masks.shapes):
        raise ConfigError(
            "invalid `predictor.targets=separate`: has no effect with one target block an image; set masks.num_targets "
            "to 2 or more, or remove it."
        )
    return masks


def _check_streams(terms: Sequence[Regularizer], levels: tuple[LevelConfig, ...], image: LevelConfig | None) -> None:
    """Reject regularizers of a stream that the model does not have."""
    streams = ["tokens", *(level.name for level in levels), *(["image"] if image is not None else [])]
    for term in terms:
        if term.stream == "image" and image is None:
            raise ConfigError(
                f"invalid `regularizers.kind={term.kind}`: stream image has no projector without an image level; add "
                "{cell: image} to levels, or set stream to tokens."
            )
        if term.stream not in streams:
            raise ConfigError(
                f"invalid `regularizers.stream={term.stream}`: must be {' or '.join(sorted(streams))} in this model."
            )


def _check_image_level(
    image: LevelConfig, terms: Sequence[Regularizer], levels: tuple[LevelConfig, ...], shape: EncoderShape
) -> None:
    """Reject an image level that would collapse or learn nothing."""
    if not any(term.stream == "image" for term in terms):
        raise ConfigError(
            "invalid `regularizers`: the image level's projections collapse without a term on stream image; add "
            "{kind: sigreg, stream: image}."
        )
    if image.masked_view is not None and not levels:
        raise ConfigError(
            f"invalid `levels.masked_view={image.masked_view}`: has no effect without a token level, whose visible "
            "patches are the view; add {cell: 1} to levels, or remove it."
        )
    if image.compare == "none" and not any(term.compares_views for term in terms):
        raise ConfigError(
            "invalid `levels.compare=none`: no term compares views; add {kind: vicreg} or {kind: ntxent} to "
            "regularizers, or set it to mean."
        )
    if image.compare != "none" and all(term.scale_invariant for term in terms if term.stream == "image"):
        kinds = ", ".join(term.kind for term in terms if term.stream == "image")
        raise ConfigError(
            f"invalid `levels.compare={image.compare}`: projections under {kinds} alone, which depends on angles only, "
            "shrink to zero; set compare to none, or add {kind: sigreg} to regularizers."
        )
    _check_image_block(image, shape)
    if image.block != "last" and not levels:
        raise ConfigError(
            f"invalid `levels.block={image.block}`: later blocks get no gradient without a token level; add "
            "{cell: 1}, or set block to last (image level)."
        )


def _check_image_block(image: LevelConfig, shape: EncoderShape) -> None:
    """Reject a block that the encoder does not have."""
    if image.block != "last" and image.block >= shape.depth:
        raise ConfigError(
            f"invalid `levels.block={image.block}`: must be 1 to {shape.depth - 1}, or last (image level)."
        )


def _check_ema(settings: ModuleSettings) -> None:
    """Reject token levels without a target encoder, unless `experimental` allows them."""
    if settings.experimental and not settings.token_levels:
        raise ConfigError("invalid `experimental=true`: has no effect without token levels; remove it.")
    if settings.experimental and settings.ema is not None:
        raise ConfigError("invalid `experimental=true`: has no effect with ema; remove it, or set ema to null.")
    if settings.ema is not None or not settings.token_levels:
        return
    if not settings.experimental:
        raise ConfigError(
            "invalid `ema=null`: token levels whose targets get a gradient collapse; remove it, or the token levels "
            "(LeJEPA), or set experimental to true."
        )
    if settings.pyramid is not None:
        raise ConfigError("invalid `pyramid`: needs a target encoder to be evaluated with; remove it, or ema=null.")


def _check_unused(settings: ModuleSettings) -> None:
    """Reject parts that were set but that no level uses."""
    unused = [] if settings.token_levels else ["masks", "predictor", "ema"]
    for key in unused + ([] if settings.image_level is not None else ["projector"]):
        value = getattr(settings, key)
        if value is not None and value != type(value)():
            level = "an image level ({cell: image})" if key == "projector" else "a token level ({cell: 1})"
            raise ConfigError(f"invalid `{key}`: has no effect without {level}; remove it, or add the level.")
    defaults = {"prediction": "smooth_l1", "level_scale": "baseline", "target_norm": "layer", "target_blocks": 1}
    for key, default in defaults.items():
        if not settings.token_levels and getattr(settings, key) != default:
            raise ConfigError(
                f"invalid `{key}={getattr(settings, key)}`: has no effect without a token level ({{cell: 1}}); remove "
                "it, or add the level."
            )


def _check_predictor(settings: ModuleSettings) -> None:
    """Reject settings of the predictor that the masks or levels make void."""
    predictor, masks = settings.predictor, settings.masks
    if predictor.targets == "separate" and not find_masks(masks).several_blocks:
        raise ConfigError(
            f"invalid `predictor.targets=separate`: has no effect with masks.kind={masks.kind}, which has one target "
            "block; remove one of them."
        )
    if predictor.targets == "separate" and masks.strategy != "global_only":
        raise ConfigError(
            "invalid `predictor.targets=separate`: cannot be combined with several crops "
            f"(masks.strategy={masks.strategy}); set it to joint."
        )
    if masks.per_image > 1 and masks.strategy != "global_only":
        raise ConfigError(
            f"invalid `masks.per_image={masks.per_image}`: cannot be combined with several crops "
            f"(masks.strategy={masks.strategy}); set it to 1, or masks.strategy to global_only."
        )
    if predictor.context == "fused" and all(level.block == "last" for level in settings.token_levels):
        raise ConfigError(
            "invalid `predictor.context=fused`: has one depth to fuse; add a level with a block before the last."
        )


def _check_pyramid(levels: tuple[LevelConfig, ...], shape: EncoderShape) -> None:
    """Reject levels and encoders that the pyramid cannot learn from or read."""
    off = "set pyramid to null"
    cells = sorted({int(level.cell) for level in levels})
    if not cells:
        raise ConfigError(f"invalid `pyramid`: learns from token levels; add {{cell: 1}} and {{cell: 2}}, or {off}.")
    odd = next((cell for cell in cells if cell not in STRIDES), None)
    if odd is not None:
        raise ConfigError(f"invalid `levels.cell={odd}`: must be 1, 2 or 4, the strides of the pyramid; {off}.")
    if len(cells) < 2:
        raise ConfigError(
            f"invalid `levels.cell={cells[0]}`: a pyramid needs token levels of at least two of cells 1, 2 and 4; add "
            f"one, or {off}."
        )
    if shape.depth < len(STRIDES):
        raise ConfigError(f"invalid `encoder.depth={shape.depth}`: must be >= 3 with a pyramid; or {off}.")
