"""Batches on their way from the loader to the device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_pl.data.sources.images import ArrayImages
from hjepa_pl.types import Counters

AT_ONCE = 32
"""Files whose bytes are in memory at a time, and whose crops are drawn together."""


class RawGroup(NamedTuple):
    """Images of one size within a batch that are augmented in one way."""

    rows: Tensor
    """(n,) int64: their places in the batch."""
    images: tuple[Tensor, ...]
    """One (n, C, H, W) uint8 tensor of whole images, or, if they are cropped, one for each view, at the view's size."""
    boxes: Tensor | None
    """(views, n, 4) float32 if crop and flip are done: where each lies, as in `ViewBatch`. None for whole images."""
    way: int = 0
    """Index in `ViewPlan.augmenters` of those that make their views."""


class RawBatch(NamedTuple):
    """A training batch as the loader gives it: bytes, not yet augmented."""

    groups: tuple[RawGroup, ...]
    label: Tensor
    """(B,) int64, -1 where there is none."""
    source: Tensor
    """(B,) int64: index of the dataset."""
    counters: Counters


class Broken(NamedTuple):
    """A file that could not be decoded."""

    source: int
    path: str
    reason: str


class Draw(NamedTuple):
    """What one process is to read for one batch, on the host."""

    source: Tensor
    """(B,) int64."""
    place: Tensor
    """(B,) int64: index within the dataset, or place within its lane (`lane_places`) if that is streamed."""
    counters: Counters


class FileRows(NamedTuple):
    """The part of a batch that comes from files."""

    rows: Tensor
    """(n,) int64: their places in the batch."""
    groups: tuple[RawGroup, ...]
    """The same rows by the way they are augmented in, cropped."""
    label: Tensor
    """(n,) int64."""
    broken: tuple[Broken, ...]
    hopeless: bool = False
    """Whether so many files in a row were broken that one had no replacement: the rows are of no use then."""


def memory_groups(sets: list[ArrayImages | None], draw: Draw, ways: Sequence[int] = ()) -> tuple[RawGroup, ...]:
    """Gather the rows of a draw that are in memory, one group per image shape and way of augmenting.

    They are gathered on the device that a set's images are on.

    Args:
        sets: The datasets, None in place of those that are not in memory.
        draw: What to gather.
        ways: `ViewPlan.dataset_augmenters`.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, images in enumerate(sets):
        if images is not None:
            alike.setdefault((ways[i] if ways else 0, *images.images.shape[1:]), []).append(i)
    groups = []
    for (way, *_), members in alike.items():
        parts, rows = [], []
        for i in members:
            images = sets[i]
            assert images is not None
            places = torch.nonzero(draw.source == i)[:, 0]
            if len(places):
                parts.append(images.images[draw.place[places].to(images.images.device, non_blocking=True)])
                rows.append(places)
        if parts:
            # In the order of the batch, so that a single group needs no scattering on the device.
            order = torch.argsort(torch.cat(rows))
            whole = torch.cat(parts)
            gathered = whole if len(parts) == 1 else whole[order.to(whole.device, non_blocking=True)]
            groups.append(RawGroup(torch.cat(rows)[order], (gathered,), None, way))
    return tuple(groups)
