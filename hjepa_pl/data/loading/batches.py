"""The records of a training batch between the loader and the device."""

from typing import NamedTuple

from torch import Tensor

from hjepa_pl.data.sources.bad_files import BadFile
from hjepa_pl.types import Counters

AT_ONCE = 32
"""Files whose bytes are in memory at a time, and whose crops are drawn together."""


class Draw(NamedTuple):
    """What one process reads for one batch, on the host."""

    source: Tensor
    """(B,) int64: index of the dataset."""
    indices: Tensor
    """(B,) int64: index of the image in its dataset; of a stream, its position in the worker slot."""
    counters: Counters


class RawGroup(NamedTuple):
    """Images of one size in a batch that are augmented alike."""

    rows: Tensor
    """(n,) int64: their rows in the batch."""
    images: tuple[Tensor, ...]
    """One (n, C, H, W) uint8 tensor of whole images; or, if they are cropped, one for each view, of the view's size."""
    boxes: Tensor | None
    """(views, n, 4) float32 of cropped and flipped images, as in `ViewBatch`. None of whole images."""
    pair: int = 0
    """Index of their pair of augmenters in `ViewPlan.augmenters`."""


class FileRows(NamedTuple):
    """The rows of a batch that come from files and shards."""

    rows: Tensor
    """(n,) int64: their rows in the batch."""
    groups: tuple[RawGroup, ...]
    """The same rows, cropped."""
    label: Tensor
    """(n,) int64."""
    broken: tuple[BadFile, ...]
    exhausted: bool = False
    """True if too many consecutive files failed to decode; the rows are then invalid."""


class RawBatch(NamedTuple):
    """A training batch of the loader, not augmented yet."""

    groups: tuple[RawGroup, ...]
    label: Tensor
    """(B,) int64, -1 without a label."""
    source: Tensor
    """(B,) int64: index of the dataset."""
    counters: Counters
