"""Multi-crop: a few global views and several smaller local crops of each image (SwAV, arXiv:2006.09882, 3.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

from annotated_types import Ge

from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import AreaRange, Count, Pair, Positive, settings
from hjepa_pl.utils.sizes import ImgSize, sides
from hjepa_pl.utils.wording import as_typed


@settings("multicrop")
class MultiCropConfig:
    """Local crops in addition to the views, which are then the global crops.

    The area of a global crop stays `augmentation.crop_scale`; with local crops (0.3, 1) or (0.4, 1) is usual. Colors,
    flips and aspect ratios are drawn as for the views.
    """

    local_views: Count = 6
    """Local crops of each image; with a curriculum, at its end."""
    local_size: Count | Pair[Count] | None = None
    """Side of a local crop in pixels, or [height, width]; null is 3/7 of the view, rounded up to whole patches."""
    local_scale: AreaRange = (0.05, 0.3)
    """Smallest and largest fraction of the image's area that a local crop covers."""
    min_local_views: Annotated[int, Ge(0)] | None = None
    """Local crops at the start of a curriculum (see `count`); needs `warmup_epochs`."""
    warmup_epochs: Positive | None = None
    """Epochs, of the data's `epoch_size`, until all local crops are made; needs `min_local_views`."""

    def __post_init__(self) -> None:
        """Reject one half of a curriculum, and one that does not grow."""
        low, epochs = self.min_local_views, self.warmup_epochs
        if (low is None) != (epochs is None):
            key, other = ("min_local_views", "warmup_epochs")[:: 1 if epochs is None else -1]
            raise ConfigError(
                f"invalid `multicrop.{key}={as_typed(getattr(self, key))}`: has no effect without multicrop.{other}; "
                "set both or neither."
            )
        if low is not None and low >= self.local_views:
            raise ConfigError(
                f"invalid `multicrop.min_local_views={low}`: must be less than multicrop.local_views="
                f"{self.local_views}; lower it, or remove it and warmup_epochs."
            )

    def count(self, step: int, batches: int) -> int:
        """Return how many local crops a step makes.

        Without a curriculum it is `local_views`. With one, each count from `min_local_views` to `local_views` holds for
        the same number of the w = warmup_epochs * batches steps of the warm-up:
        min + floor((local_views - min + 1) * step / w), and `local_views` afterwards.

        Args:
            step: Number of the global batch since the start of the run.
            batches: Global batches per epoch.
        """
        if self.min_local_views is None or self.warmup_epochs is None:
            return self.local_views
        counts = self.local_views - self.min_local_views + 1
        grown = math.floor(counts * step / (self.warmup_epochs * batches))
        return min(self.local_views, self.min_local_views + grown)

    def local_sides(self, img_size: ImgSize, patch: tuple[int, int] | None) -> tuple[int, int]:
        """Return height and width of a local crop.

        Args:
            img_size: Size of the views.
            patch: Height and width of the encoder's patches, None without an encoder.

        Raises:
            ConfigError: If a crop is larger than a view or not a multiple of the patch, or the size is not known.
        """
        view = sides(img_size)
        if self.local_size is None:
            if patch is None:
                raise ConfigError(
                    "invalid `multicrop.local_size=null`: the module has no `patch_size` to derive it from; set it."
                )
            high, wide = (-(-3 * side // (7 * p)) * p for side, p in zip(view, patch, strict=True))
            return high, wide
        size = sides(self.local_size)
        if any(s > v for s, v in zip(size, view, strict=True)):
            raise ConfigError(
                f"invalid `multicrop.local_size={as_typed(self.local_size)}`: must be at most the size of a view; use "
                f"{_shortest(view)} or less."
            )
        if patch is not None and any(s % p for s, p in zip(size, patch, strict=True)):
            below, above = ([(s + up * (p - 1)) // p * p for s, p in zip(size, patch, strict=True)] for up in (0, 1))
            fitting = [x for x in (below, above) if all(x) and x[0] <= view[0] and x[1] <= view[1]]
            raise ConfigError(
                f"invalid `multicrop.local_size={as_typed(self.local_size)}`: must be a multiple of the encoder's "
                f"patch_size={_shortest(patch)}; use {' or '.join(map(_shortest, fitting))}."
            )
        return size


def _shortest(size: Sequence[int]) -> str:
    """Return a size as it is typed: one number for a square."""
    return as_typed(size[0] if size[0] == size[1] else list(size))


class Augmenters(NamedTuple):
    """Augmenters of the datasets that share an augmentation."""

    views: Augmenter
    """Of the (global) views."""
    local: Augmenter | None = None
    """Of the local crops; None without multi-crop."""


@dataclass(frozen=True)
class ViewPlan:
    """Views of a step: a function of the step alone, so that workers, ranks and a resumed run agree."""

    augmenters: tuple[Augmenters, ...]
    """One entry for each distinct augmentation: the data module's, then those of datasets."""
    views: int
    """Number of (global) views."""
    multicrop: MultiCropConfig | None = None
    """Local crops; None without multi-crop."""
    dataset_augmenters: tuple[int, ...] = ()
    """For each dataset of the mixture, the index in `augmenters`; empty if all use the first."""
    batches: int = 1
    """Global batches per epoch."""

    def index(self, dataset: int) -> int:
        """Return the index in `augmenters` of a dataset."""
        return self.dataset_augmenters[dataset] if self.dataset_augmenters else 0

    def with_size(self, size: tuple[int, int]) -> "ViewPlan":
        """Return the plan with views of another size; local crops keep theirs."""
        if size == self.augmenters[0].views.img_size:
            return self
        augmenters = (a._replace(views=a.views.like(a.views.config, size)) for a in self.augmenters)
        return replace(self, augmenters=tuple(augmenters))

    def at(self, step: int, index: int = 0) -> list[tuple[Augmenter, int]]:
        """Return augmenter and index of each view of a step: the global views, then the local crops.

        Args:
            step: Number of the global batch since the start of the run.
            index: Entry of `augmenters`.
        """
        augmenters = self.augmenters[index]
        views = [(augmenters.views, v) for v in range(self.views)]
        if augmenters.local is not None and self.multicrop is not None:
            count = self.multicrop.count(step, self.batches)
            views += [(augmenters.local, self.views + k) for k in range(count)]
        return views


def view_plan(
    config: MultiCropConfig | None,
    augmenter: Augmenter,
    views: int,
    patch: tuple[int, int] | None,
    augmentations: Sequence[AugmentationConfig] = (),
) -> ViewPlan:
    """Return the plan of the views, without the length of an epoch.

    Args:
        config: Local crops, None for none.
        augmenter: Augmenter of the views. That of the local crops differs in size and crop area.
        views: Number of views.
        patch: Height and width of the encoder's patches, None without an encoder.
        augmentations: Of each dataset; empty if all use the augmenter's.
    """
    distinct = [augmenter.config]
    distinct += [a for i, a in enumerate(augmentations) if a not in [augmenter.config, *augmentations[:i]]]
    size = None if config is None else config.local_sides(augmenter.img_size, patch)
    augmenters = []
    for augmentation in distinct:
        local = None
        if config is not None and size is not None:
            local = augmenter.like(replace(augmentation, crop_scale=config.local_scale), size)
        augmenters.append(Augmenters(augmenter.like(augmentation), local))
    indices = tuple(distinct.index(a) for a in augmentations) if len(distinct) > 1 else ()
    return ViewPlan(tuple(augmenters), views, config, indices)
