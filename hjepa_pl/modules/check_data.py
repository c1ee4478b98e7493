"""Data against the model: views, crops and batch size, by the data module's settings and by each batch."""

from typing import Any, Protocol

from hjepa_pl.losses import Regularizer
from hjepa_pl.masks import MaskConfig
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.modules.check_model import check_keep
from hjepa_pl.objectives.local_crops import LocalCrops
from hjepa_pl.types import CleanBatch, ConfigError, ImageModel, TrainDataModule, ViewBatch, train_data_module
from hjepa_pl.utils.settings import invalid
from hjepa_pl.utils.wording import as_typed

_MIN_CROPS = {"global_only": 0, "global_with_local_context": 1, "cross_crop_prediction": 2}
"""Local crops that each `masks.strategy` needs in a step."""


class Model(ImageModel, Protocol):
    """The attributes of a module that these checks read."""

    image_level: LevelConfig | None
    token_levels: tuple[LevelConfig, ...]
    mask_config: MaskConfig
    regularizers: tuple[Regularizer, ...]
    crops: LocalCrops


# ------------------------------------------------------------------------------------------------------ by the settings


def check_data(data: Any, model: Model, processes: int) -> None:
    """Check the views, crops, mixing and batch size of a data module.

    Args:
        data: A data module; of another kind than `TrainDataModule`, only its batches are checked (`check_batch`).
        model: The module.
        processes: Number of processes of the run.

    Raises:
        ConfigError: If the model cannot use them, or would ignore them.
    """
    data = train_data_module(data)
    if data is None:
        return
    crops = data.multicrop
    key = "local_views" if crops is None or crops.min_local_views is None else "min_local_views"
    fewest = 0 if crops is None else getattr(crops, key)
    check_views(data.views, fewest, model, f" with data.multicrop.{key}={fewest}" if crops is not None else "")
    _check_images(data.batch_size * processes, f"data.batch_size={data.batch_size}", model)
    contrastive = [term.kind for term in model.regularizers if term.contrastive]
    if data.augmentation.mixes and contrastive:
        raise ConfigError(
            f"invalid `regularizers.kind={contrastive[0]}`: pushes apart images that augmentation.mixup and "
            "cutmix make similar; set both to 0, or use another kind."
        )
    if crops is not None:
        height, width = crops.local_sides(model.img_size, model.patch_size)  # raises if a crop is too small
        if model.mask_config.strategy == "cross_crop_prediction":
            model.crops.masks_of((height // model.patch_size[0], width // model.patch_size[1]))
    if (resolution := getattr(data, "resolution", None)) is not None:
        _check_resolution(resolution, data.multicrop, model)
    if model.mask_config.strategy != "global_only":
        _check_crops(fewest, f"data.multicrop.{key}={fewest}", model)
        _check_boxes(data, model.mask_config.strategy)


def _check_resolution(resolution: Any, crops: Any, model: Model) -> None:
    """Reject views that grow where masks need one grid, and small ones that the image level or crops do not fit."""
    if model.token_levels:
        raise ConfigError(
            "invalid `data.resolution`: cannot be combined with token levels, whose masks and predictor have one grid; "
            "remove it, or all levels but {cell: image}."
        )
    sizes = resolution.growth(model.img_size, model.patch_size).sizes
    if model.image_level is not None:
        for size in sizes:
            grid = (size[0] // model.patch_size[0], size[1] // model.patch_size[1])
            check_keep(model.image_level, grid, f" of a view of {size[0]} x {size[1]} pixels (data.resolution)")
    if crops is not None:
        local = crops.local_sides(model.img_size, model.patch_size)
        if any(side > view for side, view in zip(local, sizes[0], strict=True)):
            raise invalid(
                "resolution.start",
                resolution.start,
                f"must be at least the {local[0]} x {local[1]} pixels of a local crop; raise it, or set a smaller "
                "multicrop.local_size.",
            )


def check_validated(data: Any, limit_val_batches: float) -> None:
    """Check that held-out images are measured: `data.holdout` takes them from training.

    Raises:
        ConfigError: If `trainer.limit_val_batches` is 0.
    """
    if getattr(data, "holdout", None) and limit_val_batches == 0:
        raise ConfigError(
            f"invalid `data.holdout={as_typed(data.holdout)}`: has no effect with trainer.limit_val_batches=0, without "
            "validation; remove one of them."
        )


def check_curriculum(data: Any, batches: float) -> None:
    """Check that the number of local crops stops growing before the run of `batches` batches ends.

    Raises:
        ConfigError: If it does not.
    """
    data = train_data_module(data)
    if data is None or data.multicrop is None or data.multicrop.warmup_epochs is None:
        return
    warmup = data.multicrop.warmup_epochs * data.batches_per_epoch
    if warmup >= batches:
        raise ConfigError(
            f"invalid `multicrop.warmup_epochs={data.multicrop.warmup_epochs:g}`: is {warmup:.0f} batches, and the run "
            f"has {batches:.0f}; use less."
        )


def _check_boxes(data: TrainDataModule, strategy: str) -> None:
    """Reject augmentations that move an image's content away from its box."""
    for config, augmentation in zip(data.datasets, data.augmentations, strict=True):
        for key, value in augmentation.moving_keys.items():
            own, of = ("", "") if config.augmentation is None else ("datasets.", f" (dataset {config.name})")
            raise ConfigError(
                f"invalid `{own}augmentation.{key}={as_typed(value)}`: moves content that masks.strategy={strategy} "
                f"locates by boxes; set it to 0{of}."
            )


# --------------------------------------------------------------------------------------------------------- by the batch


def check_batch(batch: ViewBatch, model: Model, processes: int) -> None:
    """Check that a training batch is a `ViewBatch` with the number of views, crops and images that the model needs.

    Raises:
        ConfigError: If it is not.
    """
    if not isinstance(batch, ViewBatch):
        raise ConfigError(
            f"the batch is a {type(batch).__name__}, not a ViewBatch: give Trainer.fit a MultiDatasetDataModule, "
            "which makes the views and the counters; datasets=[{'name': 'folder', 'root': FOLDER}] reads any folder of "
            "images."
        )
    check_views(len(batch.views), len(batch.local_views), model)
    _check_crops(len(batch.local_views), f"a batch with {len(batch.local_views)} local crops", model)
    _check_images(len(batch.label) * processes, f"a batch of {len(batch.label)} images", model)


def check_clean(batch: Any) -> None:
    """Check that a validation batch is a `CleanBatch`.

    Raises:
        ConfigError: If it is not.
    """
    if not isinstance(batch, CleanBatch):
        raise ConfigError(
            f"the validation batch is a {type(batch).__name__}, not a CleanBatch: there is no validation loss; give "
            "the data module a labeled probe set (probe=[{'name': 'folder', 'root': FOLDER}]) instead of a loader."
        )


# ------------------------------------------------------------------------------------------------------------- by both


def check_views(views: int, local: int, model: Model, multicrop: str = "") -> None:
    """Check the number of full views and local crops.

    Args:
        views: Full views of an image.
        local: Local crops of an image, at least.
        model: The module.
        multicrop: The multicrop setting, for messages; empty without one.

    Raises:
        ConfigError: If the levels cannot use them, or would ignore them.
    """
    image = model.image_level
    if image is None:
        if views > 1:
            raise ConfigError(
                f"invalid `data.views={views}`: has no effect without an image level; set it to 1, or add "
                "{cell: image} to levels."
            )
        if (local or multicrop) and model.mask_config.strategy == "global_only":
            raise ConfigError(
                "invalid `data.multicrop`: has no effect without an image level; add {cell: image} to levels, or set "
                "masks.strategy to global_with_local_context or cross_crop_prediction."
            )
    elif views + local < 2:
        raise ConfigError(
            f"invalid `data.views={views}`{multicrop}: the image level compares views of one image; set it to 2 or "
            "more."
        )
    elif image.masked_view == "replace" and views < 2:
        raise ConfigError(
            f"invalid `levels.masked_view=replace`: data.views={views} leaves no full view to compare crops with; set "
            "data.views to 2 or more, or masked_view to add."
        )


def _check_crops(count: int, given: str, model: Model) -> None:
    """Reject fewer local crops than the strategy uses."""
    strategy = model.mask_config.strategy
    if count < _MIN_CROPS[strategy]:
        raise ConfigError(
            f"invalid `masks.strategy={strategy}`: needs {_MIN_CROPS[strategy]} local crops or more in every step, not "
            f"{given}; set multicrop accordingly, or strategy to global_only."
        )


def _check_images(images: int, given: str, model: Model) -> None:
    """Reject a batch of fewer images, over all processes, than a regularizer's statistics need."""
    for term in model.regularizers:
        if images < term.min_images:
            raise ConfigError(
                f"invalid `regularizers.kind={term.kind}`: compares images of one batch, and {given} is too small; use "
                f"{term.min_images} or more images."
            )
