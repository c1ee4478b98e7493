"""Whether data and batches go with the model: each refusal is one sentence with key, value and mend."""

from typing import Any, Protocol

from hjepa_pl.losses.config import RegularizerConfig, least_images
from hjepa_pl.masks import MaskConfig, MaskGenerator
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.types import CleanBatch, ConfigError, ViewBatch
from hjepa_pl.utils.settings import as_typed
from hjepa_pl.utils.sizes import ImgSize


class Model(Protocol):
    """What is asked of a model here."""

    image_level: LevelConfig | None
    mask_config: MaskConfig
    regularizers: tuple[RegularizerConfig, ...]
    img_size: ImgSize
    patch_size: tuple[int, int]

    def crop_masks(self, grid: tuple[int, int]) -> MaskGenerator:
        """Return the masks of local crops of a grid."""


def check_data(data: Any, model: Model, processes: int) -> None:
    """Refuse a data module whose views, crops, mixing or batch the model cannot use, or would not.

    Data of another class is judged by its batches.
    """
    if not isinstance(views := getattr(data, "views", None), int) or not hasattr(data, "multicrop"):
        return
    crops = getattr(data, "multicrop", None)
    fewest = 0 if crops is None else crops.local_views if crops.min_local_views is None else crops.min_local_views
    key = "multicrop.local_views" if crops is None or crops.min_local_views is None else "multicrop.min_local_views"
    check_views(views, fewest, model, f" beside data.{key} {fewest}" if crops is not None else "")
    _check_images(data.batch_size * processes, f"data.batch_size {data.batch_size}", model)
    if data.augmentation.mixes and any(term.kind == "ntxent" for term in model.regularizers):
        raise ConfigError(
            "augmentation.mixup and cutmix make two images of each other, which regularizers 'ntxent_image' pushes "
            "apart as negatives; set both to 0, or take another kind."
        )
    if crops is not None:
        height, width = crops.local_sides(model.img_size, model.patch_size)
        if model.mask_config.strategy == "cross_crop_prediction":
            model.crop_masks((height // model.patch_size[0], width // model.patch_size[1]))
    if model.mask_config.strategy == "global_only":
        return
    _check_crops(fewest, f"data.{key}", model)
    for config, augmentation in zip(data.datasets, data.augmentations, strict=True):
        for key, value in augmentation.moving_keys.items():
            own, name = ("", "") if config.augmentation is None else ("datasets.", f" (dataset {config.name})")
            raise ConfigError(
                f"invalid `{own}augmentation.{key}={as_typed(value)}`: moves the content of crops out of their boxes, "
                f"which masks.strategy={model.mask_config.strategy} predicts by; set it to 0{name}."
            )


def check_curriculum(data: Any, batches: float) -> None:
    """Refuse a number of local crops that is still growing at the end of a run of so many batches."""
    crops = getattr(data, "multicrop", None)
    if crops is None or crops.warmup_epochs is None:
        return
    steps = crops.warmup_epochs * data.batches_per_epoch
    if steps >= batches:
        raise ConfigError(
            f"multicrop.warmup_epochs {crops.warmup_epochs:g} is {steps:.0f} batches, as long as the run of "
            f"{batches:.0f}; shorten it."
        )


def _check_crops(count: int, given: str, model: Model) -> None:
    """Refuse fewer local crops in a step than the strategy uses."""
    strategy = model.mask_config.strategy
    least = {"global_only": 0, "global_with_local_context": 1, "cross_crop_prediction": 2}[strategy]
    if count < least:
        raise ConfigError(
            f"{given} {count} is too few for masks.strategy '{strategy}', which uses {least} local crops or more in "
            f"every step; set it to {least} or more, or take strategy 'global_only'."
        )


def check_views(views: int, local: int, model: Model, beside: str = "") -> None:
    """Refuse a number of full views and local crops that the levels cannot use, or would not."""
    image = model.image_level
    if image is None:
        if views > 1:
            raise ConfigError(
                f"data.views {views} does nothing without an image level, the token levels use one; "
                "set data.views to 1, or add {cell: image} to levels."
            )
        if (local or beside) and model.mask_config.strategy == "global_only":
            raise ConfigError(
                "data.multicrop does nothing without an image level; add {cell: image} to "
                "levels, or give masks.strategy 'global_with_local_context' or 'cross_crop_prediction'."
            )
    elif views + local < 2:
        raise ConfigError(
            f"data.views {views}{beside} is too few: the image level compares views of one image; "
            "set data.views to 2 or more."
        )
    elif image.masked_view == "replace" and views < 2:
        raise ConfigError(
            f"levels.masked_view 'replace' leaves none of data.views {views} whole, and the local crops are compared "
            "with whole views; set data.views to 2 or more, or take 'add'."
        )


def _check_images(images: int, given: str, model: Model) -> None:
    """Refuse a batch of fewer images, over all processes, than a regulariser's statistics need."""
    for term in model.regularizers:
        if images < least_images(term):
            raise ConfigError(
                f"{given} is too small for regularizers '{term.name}', which compares images with one another; "
                f"take {least_images(term)} or more."
            )


def check_batch(batch: ViewBatch, model: Model, processes: int) -> None:
    """Refuse a batch that is not a `ViewBatch`, or has the wrong number of views or too few images."""
    if not isinstance(batch, ViewBatch):
        raise ConfigError(
            f"the batch is a {type(batch).__name__}, not a ViewBatch: give Trainer.fit a MultiDatasetDataModule, "
            "which makes the views and carries the counters; its datasets=[{'name': 'folder', 'root': FOLDER}] reads "
            "any folder of images, in the place of a DataLoader of your own."
        )
    check_views(len(batch.views), len(batch.local_views), model)
    _check_crops(len(batch.local_views), "the batch's number of local crops", model)
    _check_images(len(batch.label) * processes, f"the batch of {len(batch.label)} images", model)


def check_clean(batch: Any) -> None:
    """Refuse a batch of validation that is not a `CleanBatch`."""
    if not isinstance(batch, CleanBatch):
        raise ConfigError(
            f"the validation batch is a {type(batch).__name__}, not a CleanBatch: there is no validation loss; give "
            "the data module a probe, a labelled set (probe=[{'name': 'folder', 'root': FOLDER}]), and no loader."
        )
