"""Reading of the files of a batch: each is decoded, cropped to its views, and freed before the next."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from hjepa_pl.data.augment.augmenter import Augmenter, Crop
from hjepa_pl.data.augment.crop_resize import clean_resize
from hjepa_pl.data.augment.multicrop import ViewPlan
from hjepa_pl.data.loading.batches import AT_ONCE, Draw, FileRows, RawGroup
from hjepa_pl.data.sources.bad_files import ATTEMPTS, BadFile, reason
from hjepa_pl.data.sources.decode import SHRINKS, ImageFile
from hjepa_pl.data.sources.images import EncodedImages, Item
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.types import Counters

_GAP = 2
"""How much larger than the view a shrunk image must be: then the result is "very close" to that of the whole image
(Pillow, on `reducing_gap`), here by less than one level of 255 in the mean."""


class Source(Protocol):
    """A dataset as the reader sees it: `IndexedSource` or `ShardStream`."""

    def item(self, counters: Counters, row: int, index: int, attempt: int) -> Item:
        """Return the image of a row of a batch.

        Args:
            counters: Of the batch.
            row: Of the batch.
            index: Drawn for the row (`Draw.indices`).
            attempt: 0, or the number of its images that could not be decoded; then another image is returned.
        """


class IndexedSource:
    """Images by index. A bad one is replaced by a random one of the set, drawn by the counters of its position."""

    def __init__(self, images: EncodedImages, seed: int) -> None:
        self.images = images
        self.seed = seed

    def item(self, counters: Counters, row: int, index: int, attempt: int) -> Item:
        """Return the image of a row (see `Source`)."""
        if attempt:
            position = int(counters.position[row])
            key = hash_int(self.seed, counters.epoch, Stream.REPLACE, position, attempt - 1)
            index = key % len(self.images)
        return self.images.item(index)


class _Opened(NamedTuple):
    """A file that fills a row of the batch, if it can be decoded."""

    image: ImageFile
    label: int
    path: str
    attempt: int
    """Number of bad files before it."""


class _TooManyBadFiles(Exception):
    """Too many consecutive files could not be decoded."""


class _ViewBuffers(NamedTuple):
    """The rows of a batch that are augmented alike, filled one after the other."""

    rows: Tensor
    """(n,) int64: their rows in the batch."""
    views: list[tuple[Augmenter, int]]
    images: tuple[Tensor, ...]
    """For each view, (n, C, H, W) uint8."""
    boxes: Tensor
    """(views, n, 4) float32, as in `ViewBatch`."""
    labels: Tensor
    """(n,) int64."""


class FileReader:
    """Decodes the files of a batch and crops the views from them. Workers get a copy of it.

    Args:
        sources: For each dataset of the mixture, what is read; None if it is in memory.
        names: Of the datasets, for bad files.
        plan: The views of each step.
        channels: Of the result.
    """

    def __init__(self, sources: Sequence[Source | None], names: Sequence[str], plan: ViewPlan, channels: int) -> None:
        self.sources = sources
        self.names = names
        self.plan = plan
        self.channels = channels

    def read(self, draw: Draw) -> FileRows:
        """Read the rows of a draw that are in files."""
        in_files = torch.tensor([s is not None for s in self.sources])
        rows = torch.nonzero(in_files[draw.source])[:, 0]
        pairs = torch.tensor([self.plan.index(i) for i in range(len(self.sources))])[draw.source[rows]]
        label = torch.full((len(rows),), -1)
        groups, broken = [], list[BadFile]()
        for pair in range(len(self.plan.augmenters)):
            chosen = torch.nonzero(pairs == pair)[:, 0]
            if len(chosen):
                buffers = self._empty(rows[chosen], self.plan.at(draw.counters.step, pair))
                try:
                    for index in torch.arange(len(chosen)).split(AT_ONCE):
                        self._fill(buffers, index, draw, broken)
                except _TooManyBadFiles:
                    return FileRows(rows, (), label, tuple(broken), exhausted=True)
                label[chosen] = buffers.labels
                groups.append(RawGroup(buffers.rows, buffers.images, buffers.boxes, pair))
        return FileRows(rows, tuple(groups), label, tuple(broken))

    def _empty(self, rows: Tensor, views: list[tuple[Augmenter, int]]) -> _ViewBuffers:
        n = len(rows)
        images = tuple(torch.empty(n, self.channels, *a.img_size, dtype=torch.uint8) for a, _ in views)
        return _ViewBuffers(rows, views, images, torch.empty(len(views), n, 4), torch.empty(n, dtype=torch.int64))

    def _fill(self, buffers: _ViewBuffers, index: Tensor, draw: Draw, broken: list[BadFile], attempt: int = 0) -> None:
        """Fill some rows of the buffers, at `index`, from their files; bad files are replaced (see `_open`)."""
        rows = buffers.rows[index]
        opened = [self._open(draw, row, broken, attempt) for row in rows.tolist()]
        buffers.labels[index] = torch.tensor([o.label for o in opened])
        sizes = [(o.image.height, o.image.width) for o in opened]
        height, width = torch.tensor(sizes).T
        crops = _crops(buffers, index, draw.counters, height, width)
        shrink = _shrinks(buffers.views, crops, opened)
        parts = _parts(buffers, index, crops, shrink, height, width)
        for i, (at, factor) in enumerate(zip(index.tolist(), shrink.tolist(), strict=True)):
            one = index[i : i + 1]
            try:
                image = opened[i].image.pixels(self.channels, factor)
            except OSError as error:
                broken.append(BadFile(opened[i].path, self._name(draw, int(rows[i])), reason(error)))
                self._fill(buffers, one, draw, broken, opened[i].attempt + 1)
                continue
            part = [p[i] for p in parts]
            if factor == 1 and image.shape[1:] != sizes[i]:  # rotated, which its header did not tell
                size = torch.tensor(image.shape[1:])[:, None]
                part = [p[0] for p in _parts(buffers, one, _crops(buffers, one, draw.counters, *size), None, *size)]
            for (augmenter, _), images, (box, flip) in zip(buffers.views, buffers.images, part, strict=True):
                view = _cut(image, box, augmenter)
                images[at] = view.flip(-1) if flip else view

    def _name(self, draw: Draw, row: int) -> str:
        return self.names[int(draw.source[row])]

    def _open(self, draw: Draw, row: int, broken: list[BadFile], attempt: int) -> _Opened:
        """Read the file of a row, from an attempt on; a bad file is replaced by that of the next attempt.

        Raises:
            _TooManyBadFiles: After `ATTEMPTS`.
        """
        source = self.sources[int(draw.source[row])]
        assert source is not None
        for number in range(attempt, ATTEMPTS):
            item = source.item(draw.counters, row, int(draw.indices[row]), number)
            try:
                return _Opened(item.open(), item.label, item.path, number)
            except OSError as error:
                broken.append(BadFile(item.path, self._name(draw, row), reason(error)))
        raise _TooManyBadFiles


def _crops(buffers: _ViewBuffers, index: Tensor, counters: Counters, height: Tensor, width: Tensor) -> list[Crop]:
    """Draw the crops of some rows, of images of these sizes, for each view."""
    position = counters.position[buffers.rows[index]]
    return [augmenter.boxes(height, width, counters.epoch, position, view) for augmenter, view in buffers.views]


def _shrinks(views: list[tuple[Augmenter, int]], crops: list[Crop], opened: list[_Opened]) -> Tensor:
    """Return the factor by which each image is shrunk when it is decoded, the same for all of its views: (n,) int64."""
    ratio = torch.tensor([float(o.image.max_shrink) for o in opened]) * _GAP
    for (augmenter, _), crop in zip(views, crops, strict=True):
        if augmenter.config.whole:
            ratio.zero_()
        ratio = torch.minimum(ratio, (crop.box[:, 2:] / torch.tensor(augmenter.img_size)).amin(dim=1))
    shrink = torch.ones(len(ratio), dtype=torch.int64)
    for factor in reversed(SHRINKS):
        shrink[ratio >= factor * _GAP] = factor
    return shrink


def _parts(
    buffers: _ViewBuffers, index: Tensor, crops: list[Crop], shrink: Tensor | None, height: Tensor, width: Tensor
) -> list[list[tuple[list[int], bool]]]:
    """Store the boxes of some rows, and return for each view and row its box in the decoded image and its flip.

    In shrunk images edges are rounded to whole pixels, which moves them by at most a quarter of a pixel of the view.
    """
    parts = []
    for boxes, crop in zip(buffers.boxes, crops, strict=True):
        box = crop.box
        if shrink is not None and int(shrink.max()) > 1:
            by = shrink[:, None]
            near = torch.round(box[:, :2] / by)
            size = torch.round((box[:, :2] + box[:, 2:]) / by) - near
            # The last pixel of a row or column may cover fewer pixels than the others.
            far = torch.minimum((near + size) * by, torch.stack([height, width], dim=1))
            crop = Crop(torch.cat([near * by, far - near * by], dim=1), crop.flip)
            box = torch.cat([near, size], dim=1)
        boxes[index] = crop.relative(height, width)
        parts.append(list(zip(box.int().tolist(), crop.flip.tolist(), strict=True)))
    return parts


def _cut(image: Tensor, box: list[int], augmenter: Augmenter) -> Tensor:
    """Crop a view from an image (C, H, W) uint8 and resize it to the view's size."""
    if augmenter.config.whole:
        return clean_resize(image[None], augmenter.img_size)[0]
    cut = image[None, :, box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
    # For one large photograph torch's uint8 kernel is faster than matrix products, with the same filter.
    return F.interpolate(cut, size=augmenter.img_size, mode="bilinear", antialias=True)[0]


class FileDraws(Dataset[FileRows]):
    """The batches of an epoch by number, for a `DataLoader` with workers."""

    def __init__(self, reader: FileReader, draw: Callable[[int], Draw]) -> None:
        self.reader = reader
        self.draw = draw

    def __getitem__(self, number: int) -> FileRows:
        return self.reader.read(self.draw(number))
