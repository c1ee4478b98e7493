"""The records that pass between the parts of the package.

Letters used in every shape: B images, V views, C channels, H x W pixels or grid, N patches, K visible patches,
T target blocks, M cells of one block, Q = T * M queries of one level, D width, P predictor width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # a refused command line shall not wait for torch
    from torch import Tensor


class ConfigError(ValueError):
    """A setting that is refused: one sentence that names the key, its value and the mend."""


class RunStopped(RuntimeError):
    """A run that must not go on: one sentence that names what happened and what to change."""


class Counters(NamedTuple):
    """Where a batch stands in the run. Everything random is a function of these, never of the rank or worker."""

    epoch: int
    """Number of the epoch, from 0."""
    step: int
    """Number of the (global) batch since the start of the run, from 0."""
    position: Tensor
    """(B,) int64: global position of each sample within the epoch, over all ranks."""


class Mix(NamedTuple):
    """With what the views of a batch were mixed (Mixup, CutMix): a mixed image has two labels."""

    label: Tensor
    """(B,) int64: label of each image's partner."""
    share: Tensor
    """(B,) float32: share of the image itself, that of its partner being the rest."""


class ViewBatch(NamedTuple):
    """One training batch as the module receives it, on the device and normalised."""

    views: tuple[Tensor, ...]
    """V tensors (B, C, H, W), float32: augmented views of the same B images."""
    label: Tensor
    """(B,) int64; -1 where the dataset has no labels. Only watched, never trained on."""
    source: Tensor
    """(B,) int64: index of the dataset in the mixture that each image came from."""
    counters: Counters
    local_views: tuple[Tensor, ...] = ()
    """K tensors (B, C, h, w), float32: smaller crops of the same B images; none without multi-crop."""
    boxes: Tensor | None = None
    """(V + K, B, 4) float32: where each view, then each local crop, lies in its image: top, left, bottom, right as
    shares of the image's sides, left > right where it is flipped, so that left + u * (right - left) is the place of u
    in [0, 1] across the view. What `rotate`, `translate` and `rand_augment` move is not in it. None without
    multi-crop."""
    mix: Mix | None = None
    """With what the views were mixed; None if they were not."""


class CleanBatch(NamedTuple):
    """One batch of a probe set: clean (unaugmented) images, on the device and normalised."""

    image: Tensor
    """(B, C, H, W), float32."""
    label: Tensor
    """(B,) int64."""
    place: Tensor  # not `index`, which is a method of every tuple
    """(B,) int64: place of the image in its probe split, so that rows gathered from ranks can be ordered."""


class Masks(NamedTuple):
    """What the context encoder sees and what is to be predicted."""

    context: Tensor
    """(B, K) int64: indices of the visible patches, in no particular order."""
    targets: tuple[Tensor, ...]
    """One (B, T, M) int64 tensor per token level: indices of the target cells on that level's own grid. With joint
    targets (and with random masks) T is 1 and no cell is twice in a row; else the T blocks of an image may share
    cells."""


class LevelState(NamedTuple):
    """What one token level predicted in a step, without gradient: for those that watch."""

    prediction: Tensor
    """(B, Q, D)."""
    target: Tensor
    """(B, Q, D)."""
    cells: Tensor
    """(B, Q) int64: index on the level's grid of each query."""
    target_map: Tensor
    """(B, cells of the grid, D): the target at every cell."""
