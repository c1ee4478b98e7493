"""Loaders of the held-out images in a validation: views as in training, and several views of each of a few images.

Both draw by counters that no step of training has and that are the same in every validation, so that its figures can be
compared: they differ by the weights alone. A curriculum of local crops is at its end.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hjepa_pl.data.augment.multicrop import ViewPlan
from hjepa_pl.data.loading.batches import RawBatch
from hjepa_pl.data.loading.mixture import EpochPlan
from hjepa_pl.data.loading.train_data import TrainData
from hjepa_pl.data.loading.train_loader import TrainLoader
from hjepa_pl.data.loading.trainer_info import TrainerInfo
from hjepa_pl.data.loading.views import make_views
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.types import ConfigError, RepeatedViews

REPEATED_VIEWS = 8
"""Views of each image for LiDAR."""
REPEATED_IMAGES = 128
"""Most images of which so many views are made: as many forward passes as of 512 images in two views."""
_EPOCH = 2**24
"""Epoch in the counters of held-out images; that of their repeated views is the next."""


class RawRepeats(NamedTuple):
    """A batch of which `REPEATED_VIEWS` views are made."""

    batch: RawBatch


class HeldOutPlan(EpochPlan):
    """The same images in the same order in every epoch: the first ones of a seeded permutation of all held-out ones.

    Args:
        sizes: Numbers of held-out images of the datasets; some may be 0.
        images: How many are drawn.
        seed: Of the permutation.
    """

    def __init__(self, sizes: list[int], images: int, seed: int) -> None:
        self.sizes, self.epoch_size, self.seed = sizes, images, seed
        key = hash_int(seed, Stream.HOLDOUT, 1)
        chosen = np.random.Generator(np.random.PCG64(key)).permutation(sum(sizes))[:images]
        self._source = np.repeat(np.arange(len(sizes)), sizes)[chosen]
        self._index = np.concatenate([np.arange(n) for n in sizes])[chosen]
        self.counts = np.bincount(self._source, minlength=len(sizes)).tolist()

    def draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the dataset and the index at each position, both (images,) int64."""
        return self._source.copy(), self._index.copy()


class RepeatsLoader:
    """Marks the batches of a loader as those of which repeated views are made."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[RawRepeats]:
        for batch in self.loader:
            yield RawRepeats(batch)


def held_out_loaders(
    data: TrainData, batch_size: int, num_workers: int, trainer: TrainerInfo, bad: BadFiles
) -> list[TrainLoader | RepeatsLoader]:
    """Return the loader of all held-out images with the views of training, and that of repeated views of a few.

    The second is left out where all views of an image would be equal (augmentation `none`).

    Args:
        data: The training data, with the held-out images as its sets.
        batch_size: Of training: batches are of equal size, at least half of that, or of all images if they are
            fewer.
        num_workers: Workers that decode files.
        trainer: Process and device.
        bad: Takes the files that cannot be decoded.
    """
    total = sum(len(images) for images in data.sets)
    loaders: list[TrainLoader | RepeatsLoader] = [_loader(data, total, _EPOCH, batch_size, num_workers, trainer, bad)]
    if all(_varies(a.views.config) for a in data.views.augmenters):
        few = min(total, REPEATED_IMAGES)
        repeated = replace(data, views=_repeated(data.views))
        loaders.append(RepeatsLoader(_loader(repeated, few, _EPOCH + 1, batch_size, num_workers, trainer, bad)))
    return loaders


def _loader(
    data: TrainData, images: int, epoch: int, batch_size: int, num_workers: int, trainer: TrainerInfo, bad: BadFiles
) -> TrainLoader:
    """Return a loader of equal batches of about `images` images in all."""
    batches = math.ceil(images / (batch_size * trainer.world_size))
    own = images // (batches * trainer.world_size)
    if data.views.augmenters[0].views.config.mixes:
        own -= own % 2  # images are mixed in pairs
    if own < 2:
        raise ConfigError(
            f"the {images} images that data.holdout leaves out are too few for {trainer.world_size} processes; raise "
            "it, or use fewer processes."
        )
    plan = HeldOutPlan([len(s) for s in data.sets], batches * own * trainer.world_size, data.plan.seed)
    fixed = trainer._replace(limit=None, position=lambda: epoch * batches)
    return TrainLoader(replace(data, plan=plan), batch_size=own, num_workers=num_workers, trainer=fixed, bad=bad)


def repeated_views(repeats: RawRepeats, plan: ViewPlan, channels: int) -> RepeatedViews:
    """Return `REPEATED_VIEWS` views of each image, on its device: full views, neither mixed nor local crops."""
    return RepeatedViews(make_views(repeats.batch, _repeated(plan), channels)[0])


def _repeated(plan: ViewPlan) -> ViewPlan:
    return replace(plan, views=REPEATED_VIEWS, multicrop=None)


def _varies(config: object) -> bool:
    """Return whether an augmentation makes views of an image differ."""
    try:
        config.check_views(REPEATED_VIEWS)  # type: ignore[attr-defined]
    except ConfigError:
        return False
    return True
