"""Multi-crop: a few global views and more, smaller local crops of the same images (SwAV, arXiv:2006.09882, 3.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.numbers import check_number, check_range, check_whole
from hjepa_pl.utils.sizes import ImgSize, check_size, sides


@dataclass(frozen=True, kw_only=True)
class MultiCropConfig:
    """Local crops beside the views, which are then the global crops.

    What a global crop covers stays `augmentation.crop_scale`; with local crops (0.3, 1) or (0.4, 1) is usual. Colours,
    flips and the crop's shape are drawn as for the views.
    """

    local_views: int = 6
    """Local crops of each image; with a curriculum, at its end."""
    local_size: ImgSize | None = None
    """Side of a local crop in pixels, or [height, width]; 3/7 of the view's, up to whole patches, if not given."""
    local_scale: tuple[float, float] = (0.05, 0.3)
    """Share of the image's area that a local crop covers, smallest and largest."""
    min_local_views: int | None = None
    """Local crops at the start of a curriculum (see `count`); needs `warmup_epochs`."""
    warmup_epochs: float | None = None
    """Epochs, of the data's `epoch_size`, until all local crops are made; needs `min_local_views`."""

    def __post_init__(self) -> None:
        check_whole("multicrop.local_views", self.local_views, 1)
        object.__setattr__(self, "local_scale", check_range("multicrop.local_scale", self.local_scale, 0.0, 1.0))
        if self.local_size is not None:
            check_size("`multicrop.local_size`", self.local_size)
        if isinstance(self.local_size, list):
            object.__setattr__(self, "local_size", sides(self.local_size))
        self._check_curriculum()

    def _check_curriculum(self) -> None:
        low, epochs = self.min_local_views, self.warmup_epochs
        if low is None and epochs is None:
            return
        if low is None or epochs is None:
            given, other = ("min_local_views", "warmup_epochs")[:: 1 if epochs is None else -1]
            raise ConfigError(
                f"`multicrop.{given}={getattr(self, given)}` would do nothing without `{other}`: give both or neither."
            )
        check_whole("multicrop.min_local_views", low, 0)
        check_number("multicrop.warmup_epochs", epochs, 0.0, open_low=True)
        if low >= self.local_views:
            raise ConfigError(
                f"`multicrop.min_local_views={low}` is refused: give fewer than local_views={self.local_views}, "
                "or leave it and warmup_epochs out."
            )

    def count(self, step: int, batches: int) -> int:
        """Return how many local crops a step makes.

        Without a curriculum `local_views`. With one, each count from `min_local_views` to `local_views` gets an equal
        part of the warm-up's w = warmup_epochs * batches steps: min + floor((local_views - min + 1) * step / w), and
        `local_views` from there on.

        Args:
            step: Number of the global batch since the start of the run.
            batches: Global batches of an epoch.
        """
        if self.min_local_views is None or self.warmup_epochs is None:
            return self.local_views
        counts = self.local_views - self.min_local_views + 1
        grown = math.floor(counts * step / (self.warmup_epochs * batches))
        return min(self.local_views, self.min_local_views + grown)

    def local_sides(self, img_size: ImgSize, patch: tuple[int, int] | None) -> tuple[int, int]:
        """Return height and width of a local crop.

        Args:
            img_size: Of the views.
            patch: Height and width of the encoder's patches, None if there is no encoder to ask.

        Raises:
            ConfigError: If the size is larger than a view, is not made of whole patches, or cannot be known.
        """
        view = sides(img_size)
        if self.local_size is None:
            if patch is None:
                raise ConfigError(
                    "`multicrop.local_size=None` is refused: the module has no `patch_size` to choose it by, so set it."
                )
            high, wide = (-(-3 * side // (7 * p)) * p for side, p in zip(view, patch, strict=True))
            return high, wide
        size, shown = sides(self.local_size), _shown(self.local_size)
        if any(s > v for s, v in zip(size, view, strict=True)):
            raise ConfigError(
                f"`multicrop.local_size={shown}` is refused: a local crop is at most as large as a view, "
                f"{_shown(view)}."
            )
        if patch is not None and any(s % p for s, p in zip(size, patch, strict=True)):
            below, above = ([(s + up * (p - 1)) // p * p for s, p in zip(size, patch, strict=True)] for up in (0, 1))
            fitting = [x for x in (below, above) if all(x) and x[0] <= view[0] and x[1] <= view[1]]
            raise ConfigError(
                f"`multicrop.local_size={shown}` is refused: it is no whole number of the encoder's patches of "
                f"{_shown(patch)} pixels; {' or '.join(map(_shown, fitting))} would do."
            )
        return size


def _shown(size: int | Sequence[int]) -> str:
    """Return a size as a config would hold it: one number for a square."""
    high, wide = sides(size)
    return str(high if high == wide else [high, wide])


class AugmenterPair(NamedTuple):
    """Who makes the views of the images that are augmented in one way."""

    views: Augmenter
    """Makes the (global) views."""
    local: Augmenter | None = None
    """Makes the local crops; None without multi-crop."""


@dataclass(frozen=True)
class ViewPlan:
    """Which views a step has: a function of the step alone, so that workers, ranks and a resumed run agree."""

    makers: tuple[AugmenterPair, ...]
    """One for each way of augmenting: the data module's, then those that datasets have of their own."""
    views: int
    """How many (global) views."""
    multicrop: MultiCropConfig | None = None
    """Tells how many local crops a step has; None without multi-crop."""
    ways: tuple[int, ...] = ()
    """For each dataset of the mixture, which of `makers` makes its views; empty where the first makes all."""
    batches: int = 1
    """Global batches of an epoch."""

    def way(self, dataset: int) -> int:
        """Return which of `makers` makes the views of a dataset."""
        return self.ways[dataset] if self.ways else 0

    def at(self, step: int, way: int = 0) -> list[tuple[Augmenter, int]]:
        """Return who makes each view of a step and the view's number: the local crops' follow the global views'."""
        makers = self.makers[way]
        crops = [(makers.views, v) for v in range(self.views)]
        if makers.local is not None and self.multicrop is not None:
            count = self.multicrop.count(step, self.batches)
            crops += [(makers.local, self.views + k) for k in range(count)]
        return crops


def view_plan(
    config: MultiCropConfig | None,
    augmenter: Augmenter,
    views: int,
    patch: tuple[int, int] | None,
    augmentations: Sequence[AugmentationConfig] = (),
) -> ViewPlan:
    """Return which views are made, but for the length of an epoch.

    Args:
        config: Of the local crops, None for none.
        augmenter: Of the views. The local crops' is the same, but for the size and the share of the image covered.
        views: How many.
        patch: Height and width of the encoder's patches, None if there is no encoder to ask.
        augmentations: Of each dataset; the augmenter's for all if not given.
    """
    kinds = list(dict.fromkeys([augmenter.config, *augmentations]))
    size = None if config is None else config.local_sides(augmenter.img_size, patch)
    makers = []
    for kind in kinds:
        local = None
        if config is not None and size is not None:
            local = augmenter.like(replace(kind, crop_scale=config.local_scale), size)
        makers.append(AugmenterPair(augmenter.like(kind), local))
    ways = tuple(kinds.index(a) for a in augmentations) if len(kinds) > 1 else ()
    return ViewPlan(tuple(makers), views, config, ways)
