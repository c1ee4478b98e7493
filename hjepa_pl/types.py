"""Records, errors and Protocols shared by the packages.

Letters used in every shape: B images, V views, C channels, H x W pixels or grid, N patches, K visible patches,
T target blocks, M cells of one block, Q = T * M queries of one level, D width, P predictor width.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

if TYPE_CHECKING:  # a command line is rejected without waiting for torch
    from torch import Tensor


class ConfigError(ValueError):
    """An invalid setting: one sentence with the key, its value, and how to fix it."""


class RunStopped(RuntimeError):
    """A run that must not continue: one sentence that says why, and what to change."""


# ------------------------------------------------------------------------------------------------------------- records


class Counters(NamedTuple):
    """Position of a batch in the run. All randomness is a function of these, never of rank or worker."""

    epoch: int
    """Number of the epoch, from 0."""
    step: int
    """Number of the (global) batch since the start of the run, from 0."""
    position: Tensor
    """(B,) int64: global position of each sample within the epoch, over all ranks."""


class Mix(NamedTuple):
    """Partners of mixed images (Mixup, CutMix): a mixed image has two labels."""

    label: Tensor
    """(B,) int64: label of each image's partner."""
    share: Tensor
    """(B,) float32: fraction of the image itself; the rest is its partner's."""


class ViewBatch(NamedTuple):
    """One training batch as the module receives it, on the device and normalized."""

    views: tuple[Tensor, ...]
    """V tensors (B, C, H, W), float32: augmented views of the same B images."""
    label: Tensor
    """(B,) int64; -1 where the dataset has no labels. For monitoring only."""
    source: Tensor
    """(B,) int64: index of each image's dataset in the mixture."""
    counters: Counters
    local_views: tuple[Tensor, ...] = ()
    """K tensors (B, C, h, w), float32: smaller crops of the same B images; none without multi-crop."""
    boxes: Tensor | None = None
    """(V + K, B, 4) float32: box of each view, then of each local crop, in its image: top, left, bottom, right as
    fractions of the image's height and width. left > right where the view is flipped, so that a point at u in [0, 1]
    across the view is at left + u * (right - left) in the image. Does not include `rotate`, `translate` and
    `rand_augment`. None without multi-crop."""
    mix: Mix | None = None
    """Partners of the images; None if they were not mixed."""


class CleanBatch(NamedTuple):
    """One batch of a probe set: clean (unaugmented) images, on the device and normalized."""

    image: Tensor
    """(B, C, H, W), float32."""
    label: Tensor
    """(B,) int64."""
    place: Tensor  # not `index`, which is a method of every tuple
    """(B,) int64: index of each image in its probe split, by which rows gathered from ranks are ordered."""


class RepeatedViews(NamedTuple):
    """Several augmented views of each image of a held-out batch, on the device and normalized."""

    views: tuple[Tensor, ...]
    """Q tensors (B, C, H, W), float32: views of the same B images."""


class Masks(NamedTuple):
    """Visible patches and target cells of each image.

    With M masks of an image (`masks.per_image`) B is M times the images: one mask of all images after the other.
    """

    context: Tensor
    """(B, K) int64: indices of the visible patches, in no particular order."""
    targets: tuple[Tensor, ...]
    """One (B, T, M) int64 tensor per token level: indices of the target cells on that level's own grid. With joint
    targets (and with random masks) T is 1 and the cells of a row are distinct; else the T blocks of an image may
    overlap."""


class LevelState(NamedTuple):
    """Prediction and target of one token level in a step, without gradient, for callbacks."""

    prediction: Tensor
    """(M * B, Q, D), of M masks of each image."""
    target: Tensor
    """(M * B, Q, D)."""
    cells: Tensor
    """(M * B, Q) int64: index on the level's grid of each query."""
    target_map: Tensor
    """(B, cells of the grid, D): the target at every cell."""


# ----------------------------------------------------------------------------------------- between the module and data


class ImageModel(Protocol):
    """The images that a module trains on: the data module takes these from it."""

    img_size: int | tuple[int, int]
    """Side of a square image, or (height, width), in pixels."""
    in_chans: int
    patch_size: tuple[int, int]
    """Height and width of a patch in pixels: local crops are cut to whole patches."""


class TrainDataModule(Protocol):
    """A data module's settings that the module checks, logs and stores. `MultiDatasetDataModule` has them all."""

    batch_size: int
    """Images per process and step."""
    views: int
    """Full views of each image."""
    multicrop: Any
    """`MultiCropConfig`, or None without local crops."""
    augmentation: Any
    """`AugmentationConfig` of the data module."""
    datasets: Sequence[Any]
    """`DatasetConfig` of each dataset of the mixture."""

    @property
    def augmentations(self) -> Sequence[Any]:
        """`AugmentationConfig` of each dataset."""

    @property
    def names(self) -> list[str]:
        """Name of each dataset, for logs."""

    @property
    def knows_epoch(self) -> bool:
        """Whether `batches_per_epoch` is known."""

    @property
    def batches_per_epoch(self) -> int:
        """Global batches of an epoch."""

    def settings(self) -> dict[str, Any]:
        """Return what a resumed run must have in common, as plain values."""

    def share_drawn(self, epoch: int = 0) -> dict[str, float]:
        """Return the fraction of an epoch's images from each dataset, by name."""

    def growing_crops(self) -> int | None:
        """Return the number of local crops of the next batch; None where it is constant."""


_MEMBERS = (*TrainDataModule.__annotations__, *(name for name in vars(TrainDataModule) if not name.startswith("_")))


def train_data_module(data: object) -> TrainDataModule | None:
    """Return a data module that has all of `TrainDataModule`; None for another, whose batches are checked instead."""
    missing = object()  # static look-ups: a property such as `batches_per_epoch` raises before the data is loaded
    complete = all(inspect.getattr_static(data, name, missing) is not missing for name in _MEMBERS)
    return cast(TrainDataModule, data) if complete else None
