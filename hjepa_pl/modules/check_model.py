"""Which settings go together: each refusal is one sentence that names key, value and mend."""

from collections.abc import Mapping, Sequence
from typing import Any

from hjepa_pl.losses import Regularizer
from hjepa_pl.masks import MaskGenerator, find_masks
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.models.pyramid import STRIDES
from hjepa_pl.models.timm_vit import EncoderShape
from hjepa_pl.types import ConfigError


def check_model(
    settings: Mapping[str, Any], levels: tuple[LevelConfig, ...], image: LevelConfig | None, geometry: EncoderShape
) -> None:
    """Refuse levels, regularisers and parts that do not go together.

    Raises:
        ConfigError: Naming the first that does not.
    """
    for level in levels:
        if level.block != "last" and level.block >= geometry.depth:
            raise ConfigError(
                f"levels.block {level.block} is not before the encoder's last of {geometry.depth} blocks; "
                f"1 to {geometry.depth - 1} or 'last' would do."
            )
    names = [term.name for term in settings["regularizers"]]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise ConfigError(f"regularizers holds '{twice}' twice; give it once, with the sum of the weights.")
    _check_image(settings["regularizers"], levels, image, geometry)
    _check_average(settings, levels)
    _refuse_idle(settings, levels, image)
    if settings["predictor"].targets == "separate" and not find_masks(settings["masks"]).several_blocks:
        raise ConfigError(
            f"invalid `predictor.targets=separate`: has no effect with masks.kind={settings['masks'].kind}, which has "
            "one target block; remove one of them."
        )
    if settings["masks"].strategy != "global_only" and settings["predictor"].targets == "separate":
        raise ConfigError(
            f"masks.strategy '{settings['masks'].strategy}' predicts from and in several crops at once, which "
            "predictor.targets 'separate' cannot; take 'joint'."
        )
    if settings["predictor"].context == "fused" and all(level.block == "last" for level in levels):
        raise ConfigError("predictor.context 'fused' has one depth to fuse; give a level with a block before the last.")
    if settings["pyramid"] is not None:
        _check_pyramid(levels, geometry)


def _check_image(
    terms: Sequence[Regularizer],
    levels: tuple[LevelConfig, ...],
    image: LevelConfig | None,
    geometry: EncoderShape,
) -> None:
    """Refuse an image level that would collapse or learn nothing, and regularisers of what is not there."""
    streams = [term.stream for term in terms]
    there = {"tokens", *(level.name for level in levels), *(["image"] if image is not None else [])}
    for term in terms:
        if term.stream == "image" and image is None:
            raise ConfigError(
                f"regularizers holds '{term.name}', but without an image level there is no projector to act on; "
                "add {cell: image} to levels, or use stream 'tokens'."
            )
        if term.stream not in there:
            raise ConfigError(
                f"regularizers.stream '{term.stream}' is no level of this model; "
                f"{', '.join(map(repr, sorted(there)))} would do."
            )
    if image is None:
        return
    if "image" not in streams:
        raise ConfigError(
            "levels holds an image level but regularizers has no term on stream 'image', so its projections would "
            "collapse; add {kind: sigreg, stream: image}."
        )
    if image.masked_view is not None and not levels:
        raise ConfigError(
            f"levels.masked_view '{image.masked_view}' does nothing without a token level, whose visible patches it "
            "shows; add {cell: 1} to levels, or remove it."
        )
    if image.compare == "none" and not any(term.compares_views for term in terms):
        raise ConfigError(
            "levels.compare 'none' leaves no term that compares views; add {kind: vicreg} or {kind: ntxent} to "
            "regularizers, or take 'mean'."
        )
    if image.compare != "none" and all(term.scale_invariant for term in terms if term.stream == "image"):
        alone = next(term.kind for term in terms if term.stream == "image")
        raise ConfigError(
            f"levels.compare '{image.compare}' measures distances, which projections under {alone} alone escape by "
            "shrinking (it sees angles only); take compare 'none', or add {kind: sigreg} to regularizers."
        )
    if image.block != "last" and image.block >= geometry.depth:
        raise ConfigError(
            f"levels.block {image.block} of the image level is not before the encoder's last of {geometry.depth} "
            f"blocks; 1 to {geometry.depth - 1} or 'last' would do."
        )
    if image.block != "last" and not levels:
        raise ConfigError(
            f"levels.block {image.block} of the image level leaves the blocks after it without any gradient; "
            "add a token level {cell: 1}, or take 'last'."
        )


def _check_average(settings: Mapping[str, Any], levels: tuple[LevelConfig, ...]) -> None:
    """Refuse token levels without a moving average, unless asked for by name."""
    if settings["experimental"] and not levels:
        raise ConfigError("experimental true does nothing without token levels, whose targets it is about; remove it.")
    if settings["experimental"] and settings["ema"] is not None:
        raise ConfigError("experimental true does nothing beside ema, which it allows to be null; remove one of them.")
    if settings["ema"] is not None or not levels:
        return
    if not settings["experimental"]:
        raise ConfigError(
            "ema null lets the token levels make their own targets with gradient, which collapses at once in public "
            "reports; leave ema out, drop the token levels (LeJEPA), or set experimental to true."
        )
    if settings["pyramid"] is not None:
        raise ConfigError("pyramid needs a moving average to be judged by, and ema is null; remove one of them.")


def _check_pyramid(levels: tuple[LevelConfig, ...], geometry: EncoderShape) -> None:
    """Refuse levels and encoders that give a pyramid nothing to learn from or to read."""
    off = "or set pyramid to null"
    cells = sorted({int(level.cell) for level in levels})
    if not cells:
        raise ConfigError(
            f"pyramid learns from the token levels and levels holds none; add {{cell: 1}} and {{cell: 2}}, {off}."
        )
    odd = next((cell for cell in cells if cell not in STRIDES), None)
    if odd is not None:
        raise ConfigError(
            f"levels.cell {odd} has no map in the pyramid, whose strides are 1, 2 and 4 patches; take one of these, "
            f"{off}."
        )
    if len(cells) < 2:
        raise ConfigError(
            f"pyramid with one level: the token levels all have levels.cell {cells[0]}; "
            f"add one with another cell of 1, 2 and 4, {off}."
        )
    if geometry.depth < len(STRIDES):
        raise ConfigError(
            f"pyramid reads three depths and the encoder has {geometry.depth} block{'s' * (geometry.depth > 1)}; "
            f"set encoder.depth to 3 or more, {off}."
        )


def check_masks(targets: str, masks: MaskGenerator) -> None:
    """Refuse a pass for each target block where there is one block."""
    if targets == "separate" and all(shape.blocks == 1 for shape in masks.shapes):
        raise ConfigError(
            "predictor.targets 'separate' does nothing with one target block an image; "
            "take masks.num_targets 2 or more, or remove it."
        )


def _refuse_idle(settings: Mapping[str, Any], levels: tuple[LevelConfig, ...], image: LevelConfig | None) -> None:
    """Refuse parts that were set but that no level would use."""
    if settings["level_scale"] not in ("baseline", "raw"):
        raise ConfigError(f"level_scale must be 'baseline' or 'raw', got {settings['level_scale']!r}.")
    idle = [] if levels else ["masks", "predictor", "ema"]
    for key in idle + ([] if image else ["projector"]):
        if settings[key] is not None and settings[key] != type(settings[key])():
            need = "an image level ({cell: image})" if key == "projector" else "a token level ({cell: 1})"
            raise ConfigError(f"{key} does nothing without {need}; remove it, or add the level.")
    for key, default in (("prediction", "smooth_l1"), ("level_scale", "baseline")):
        if not levels and settings[key] != default:
            raise ConfigError(
                f"{key} '{settings[key]}' does nothing without a token level; remove it, or add the level."
            )
