"""Which settings go together: each refusal is one sentence that names key, value and mend."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from hjepa_pl.masks import MaskGenerator
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.models.pyramid import STRIDES
from hjepa_pl.models.recipe import Geometry
from hjepa_pl.types import ConfigError, ViewBatch


def check_model(
    settings: Mapping[str, Any], levels: tuple[LevelConfig, ...], image: LevelConfig | None, geometry: Geometry
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
    if image is not None and image.masked_view is not None and not levels:
        raise ConfigError(
            f"levels.masked_view '{image.masked_view}' does nothing without a token level, whose visible patches it "
            "shows; add {cell: 1} to levels, or remove it."
        )
    streams = [term.stream for term in settings["regularizers"]]
    names = [term.name for term in settings["regularizers"]]
    if image is not None and "image" not in streams:
        raise ConfigError(
            "levels holds an image level but regularizers has no term on stream 'image', so its projections would "
            "collapse; add {kind: sigreg, stream: image}."
        )
    if image is None and "image" in streams:
        raise ConfigError(
            f"regularizers holds '{names[streams.index('image')]}', but without an image level there is no projector "
            "to act on; add {cell: image} to levels, or use stream 'tokens'."
        )
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise ConfigError(f"regularizers holds '{twice}' twice; give it once, with the sum of the weights.")
    _refuse_idle(settings, levels, image)
    if settings["predictor"].targets == "separate" and settings["masks"].kind == "random":
        raise ConfigError(
            "predictor.targets 'separate' does nothing with masks.kind 'random', which has one block; "
            "remove one of them."
        )
    if settings["predictor"].context == "fused" and all(level.block == "last" for level in levels):
        raise ConfigError("predictor.context 'fused' has one depth to fuse; give a level with a block before the last.")
    if settings["pyramid"] is not None:
        _check_pyramid(levels, geometry)


def _check_pyramid(levels: tuple[LevelConfig, ...], geometry: Geometry) -> None:
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
    if settings["prediction"] not in ("smooth_l1", "mse", "cosine"):
        raise ConfigError(f"prediction must be 'smooth_l1', 'mse' or 'cosine', got {settings['prediction']!r}.")
    if settings["level_scale"] not in ("baseline", "raw"):
        raise ConfigError(f"level_scale must be 'baseline' or 'raw', got {settings['level_scale']!r}.")
    idle = [] if levels else ["masks", "predictor", "ema"]
    for key in idle + ([] if image else ["projector"]):
        if settings[key] != type(settings[key])():
            need = "an image level ({cell: image})" if key == "projector" else "a token level ({cell: 1})"
            raise ConfigError(f"{key} does nothing without {need}; remove it, or add the level.")
    for key, default in (("prediction", "smooth_l1"), ("level_scale", "baseline")):
        if not levels and settings[key] != default:
            raise ConfigError(
                f"{key} '{settings[key]}' does nothing without a token level; remove it, or add the level."
            )


def check_views(views: int, image: LevelConfig | None) -> None:
    """Refuse a number of views that the levels cannot use, or would not."""
    if views < 2 and image is not None:
        raise ConfigError(
            f"data.views {views} is too few: the image level compares views of one image; set data.views to 2 or more."
        )
    if views > 1 and image is None:
        raise ConfigError(
            f"data.views {views} does nothing without an image level, the token levels use one; "
            "set data.views to 1, or add {cell: image} to levels."
        )


def check_trainer(trainer: pl.Trainer, image: LevelConfig | None) -> None:
    """Refuse precisions under which the model does not learn, and data that does not go with it."""
    precision = str(trainer.precision)
    if precision in ("bf16-true", "16-true"):
        raise ConfigError(
            f"trainer.precision '{precision}' keeps weights in 16 bits, where the target encoder never moves "
            "(its update is below their resolution); use 'bf16-mixed'."
        )
    if precision == "16-mixed":
        raise ConfigError(
            "trainer.precision '16-mixed' skips steps whose gradients overflow, which the target encoder would not "
            "see; use 'bf16-mixed'."
        )
    if precision not in ("32-true", "bf16-mixed"):
        raise ConfigError(f"trainer.precision '{precision}' is not supported; use '32-true' or 'bf16-mixed'.")
    if not trainer.log_every_n_steps:  # type: ignore[attr-defined]
        raise ConfigError("trainer.log_every_n_steps 0 is refused; take a large number to log seldom.")
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise ConfigError(
            "trainer.use_distributed_sampler would share out the probe sets a second time; set it to false: the data "
            "module deals to the processes itself."
        )
    views = getattr(getattr(trainer, "datamodule", None), "views", None)
    if isinstance(views, int):
        check_views(views, image)


def check_batch(batch: ViewBatch, image: LevelConfig | None) -> None:
    """Refuse a batch that is not a `ViewBatch` or has the wrong number of views."""
    if not isinstance(batch, ViewBatch):
        raise ConfigError(
            f"the batch is a {type(batch).__name__}, not a ViewBatch: give Trainer.fit a MultiDatasetDataModule, "
            "which makes the views and carries the counters."
        )
    check_views(len(batch.views), image)
