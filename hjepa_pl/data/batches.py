"""Batches on their way from the loader to the device, and how files are read into them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from hjepa_pl.data.augment import Augmenter, Crop
from hjepa_pl.data.faults import ATTEMPTS, reason
from hjepa_pl.data.multicrop import ViewPlan
from hjepa_pl.data.resize import clean_resize
from hjepa_pl.data.storage import ArrayImages, FileImages
from hjepa_pl.data.streams import ShardStream
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.types import Counters


class RawGroup(NamedTuple):
    """Images of one size within a batch that are augmented in one way."""

    rows: Tensor
    """(n,) int64: their places in the batch."""
    images: tuple[Tensor, ...]
    """One (n, C, H, W) uint8 tensor of whole images, or, if they are cropped, one for each view, at the view's size."""
    boxes: Tensor | None
    """(views, n, 4) float32 if crop and flip are done: where each lies, as in `ViewBatch`. None for whole images."""
    way: int = 0
    """Which of `ViewPlan.makers` makes their views."""


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


class FileReader:
    """Decodes the files of a batch and cuts the views out of them. Lives in the workers."""

    def __init__(self, sets: list[FileImages | ShardStream | None], plan: ViewPlan, channels: int) -> None:
        self.sets = sets
        self.plan = plan
        self.channels = channels

    def read(self, draw: Draw) -> FileRows:
        """Read the rows of a draw that are in files."""
        of_files = torch.tensor([s is not None for s in self.sets])
        rows = torch.nonzero(of_files[draw.source])[:, 0]
        broken: list[Broken] = []
        decoded = [self._decode(draw, row, broken) for row in rows.tolist()]
        labels = torch.tensor([d[1] for d in decoded if d is not None], dtype=torch.int64)
        if None in decoded:
            return FileRows(rows, (), labels, tuple(broken), hopeless=True)
        images = [d[0] for d in decoded if d is not None]
        way_of = torch.tensor([self.plan.way(i) for i in range(len(self.sets))])[draw.source[rows]]
        groups = []
        for way in range(len(self.plan.makers)):
            chosen = torch.nonzero(way_of == way)[:, 0]
            if len(chosen):
                groups.append(self._crop([images[i] for i in chosen.tolist()], rows[chosen], draw.counters, way))
        return FileRows(rows, tuple(groups), labels, tuple(broken))

    def _crop(self, images: list[Tensor], rows: Tensor, counters: Counters, way: int) -> RawGroup:
        """Cut all views out of the images of some rows."""
        height, width = (torch.tensor([image.shape[d] for image in images]) for d in (1, 2))
        views, boxes = [], []
        for augmenter, view in self.plan.at(counters.step, way):
            crop = augmenter.boxes(height, width, counters.epoch, counters.position[rows], view)
            views.append(self._cut(images, crop, augmenter))
            boxes.append(crop.shares(height, width))
        return RawGroup(rows, tuple(views), torch.stack(boxes), way)

    def _decode(self, draw: Draw, row: int, broken: list[Broken]) -> tuple[Tensor, int] | None:
        """Decode one image; a broken one is replaced by the next draw of its own position, None after too many."""
        source, index = int(draw.source[row]), int(draw.place[row])
        files = self.sets[source]
        assert files is not None
        position, seed = int(draw.counters.position[row]), self.plan.makers[0].views.seed
        for attempt in range(ATTEMPTS):
            try:
                if isinstance(files, ShardStream):
                    sample = files.sample(draw.counters.step, int(draw.place[row]), attempt)
                    return sample.read(self.channels), sample.label
                return files.read(index, self.channels), int(files.labels[index])
            except OSError as error:
                if isinstance(files, ShardStream):
                    broken.append(Broken(source, sample.path, reason(error)))
                    continue
                broken.append(Broken(source, files.path(index), reason(error)))
                index = hash_int(seed, draw.counters.epoch, Stream.REPLACE, position, attempt) % len(files)
        return None

    def _cut(self, images: list[Tensor], crop: Crop, augmenter: Augmenter) -> Tensor:
        """Cut one view out of each image, (n, C, *img_size) uint8."""
        size = augmenter.img_size
        out = torch.empty(len(images), self.channels, *size, dtype=torch.uint8)
        for row, (image, box, flip) in enumerate(zip(images, crop.box.int().tolist(), crop.flip.tolist(), strict=True)):
            if augmenter.config.whole:
                clean = clean_resize(image[None], size)[0]
                out[row] = clean.flip(-1) if flip else clean
                continue
            cut = image[None, :, box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
            # On one large photograph torch's uint8 kernel is faster than the matrix products, and the same filter.
            view_of_it = F.interpolate(cut, size=size, mode="bilinear", antialias=True)[0]
            out[row] = view_of_it.flip(-1) if flip else view_of_it
        return out


class FileDraws(Dataset[FileRows]):
    """The draws of an epoch as a dataset of whole batches, for a `DataLoader` with workers."""

    def __init__(self, reader: FileReader, draws: Any) -> None:
        self.reader = reader
        self.draws = draws

    def __getitem__(self, number: int) -> FileRows:
        return self.reader.read(self.draws(number))


def memory_groups(sets: list[ArrayImages | None], draw: Draw, ways: Sequence[int] = ()) -> tuple[RawGroup, ...]:
    """Gather the rows of a draw that are in memory, one group per image shape and way of augmenting.

    Args:
        sets: The datasets, None in place of those that are not in memory.
        draw: What to gather.
        ways: Of each dataset, as in `ViewPlan`.
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
                parts.append(images.images[draw.place[places]])
                rows.append(places)
        if parts:
            # In the order of the batch, so that a single group needs no scattering on the device.
            order = torch.argsort(torch.cat(rows))
            groups.append(RawGroup(torch.cat(rows)[order], (torch.cat(parts)[order],), None, way))
    return tuple(groups)
