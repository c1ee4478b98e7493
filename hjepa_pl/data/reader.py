"""How files are read into a batch: decoded, cropped and let go, one after the other."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from hjepa_pl.data.augment import Augmenter, Crop
from hjepa_pl.data.batches import Broken, Draw, FileRows, RawGroup
from hjepa_pl.data.decode import SHRINKS, Encoded
from hjepa_pl.data.faults import ATTEMPTS, reason
from hjepa_pl.data.multicrop import ViewPlan
from hjepa_pl.data.resize import clean_resize
from hjepa_pl.data.storage import FileImages
from hjepa_pl.data.streams import ShardStream
from hjepa_pl.functional.counters import Stream, hash_int

_AT_ONCE = 32
"""Files whose bytes are in memory at a time, and whose crops are drawn together."""
_GAP = 2
"""How much smaller than decoded a view must be, for the decoder to leave out the rest: then no eye sees it (Pillow's
documentation of `reducing_gap`), and the mean of the difference is under a level of 255."""


class _Opened(NamedTuple):
    """A file that may stand in a row of the batch."""

    image: Encoded
    label: int
    path: str
    attempt: int
    """Files that were broken before it."""


class _Hopeless(Exception):
    """Too many files in a row were broken."""


class _Cuts(NamedTuple):
    """The rows of a batch that are augmented in one way, as they fill."""

    rows: Tensor
    """(n,) int64: their places in the batch."""
    views: list[tuple[Augmenter, int]]
    images: tuple[Tensor, ...]
    """For each view, (n, C, H, W) uint8."""
    boxes: Tensor
    """(views, n, 4) float32, as in `ViewBatch`."""
    labels: Tensor
    """(n,) int64."""


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
        way_of = torch.tensor([self.plan.way(i) for i in range(len(self.sets))])[draw.source[rows]]
        label = torch.full((len(rows),), -1)
        groups, broken = [], list[Broken]()
        for way in range(len(self.plan.makers)):
            chosen = torch.nonzero(way_of == way)[:, 0]
            if len(chosen):
                cuts = self._empty(rows[chosen], self.plan.at(draw.counters.step, way))
                try:
                    for places in torch.arange(len(chosen)).split(_AT_ONCE):
                        self._fill(cuts, places, draw, broken)
                except _Hopeless:
                    return FileRows(rows, (), label, tuple(broken), hopeless=True)
                label[chosen] = cuts.labels
                groups.append(RawGroup(cuts.rows, cuts.images, cuts.boxes, way))
        return FileRows(rows, tuple(groups), label, tuple(broken))

    def _empty(self, rows: Tensor, views: list[tuple[Augmenter, int]]) -> _Cuts:
        n = len(rows)
        images = tuple(torch.empty(n, self.channels, *a.img_size, dtype=torch.uint8) for a, _ in views)
        return _Cuts(rows, views, images, torch.empty(len(views), n, 4), torch.empty(n, dtype=torch.int64))

    def _fill(self, cuts: _Cuts, places: Tensor, draw: Draw, broken: list[Broken], attempt: int = 0) -> None:
        """Cut the views of some rows; a file that turns out broken while it is decoded is replaced, as in `_open`."""
        rows = cuts.rows[places]
        opened = [self._open(draw, row, broken, attempt) for row in rows.tolist()]
        height, width = torch.tensor([[o.image.height, o.image.width] for o in opened]).T
        epoch, position = draw.counters.epoch, draw.counters.position[rows]
        crops = [augmenter.boxes(height, width, epoch, position, view) for augmenter, view in cuts.views]
        shrink = _shrinks(cuts.views, crops, opened)
        crops = [_snapped(crop, shrink, height, width) for crop in crops]
        for boxes, crop in zip(cuts.boxes, crops, strict=True):
            boxes[places] = crop.shares(height, width)
        cuts.labels[places] = torch.tensor([o.label for o in opened])
        parts = [torch.ceil(crop.box / shrink[:, None]).int().tolist() for crop in crops]
        flips = [crop.flip.tolist() for crop in crops]
        for i, (place, by) in enumerate(zip(places.tolist(), shrink.tolist(), strict=True)):
            try:
                image = opened[i].image.pixels(self.channels, by)
            except OSError as error:
                broken.append(Broken(int(draw.source[rows[i]]), opened[i].path, reason(error)))
                self._fill(cuts, places[i : i + 1], draw, broken, opened[i].attempt + 1)
                continue
            for (augmenter, _), images, part, flip in zip(cuts.views, cuts.images, parts, flips, strict=True):
                view = _cut(image, part[i], augmenter)
                images[place] = view.flip(-1) if flip[i] else view

    def _open(self, draw: Draw, row: int, broken: list[Broken], attempt: int) -> _Opened:
        """Read one file; a broken one is replaced by the next draw of its own position.

        Raises:
            _Hopeless: After too many.
        """
        source, place = int(draw.source[row]), int(draw.place[row])
        files = self.sets[source]
        assert files is not None
        for tried in range(attempt, ATTEMPTS):
            path = ""
            try:
                if isinstance(files, ShardStream):
                    sample = files.sample(draw.counters.step, place, tried)
                    path = sample.path
                    return _Opened(sample.open(), sample.label, path, tried)
                index = place if tried == 0 else self._other(draw, row, tried, len(files))
                path = files.path(index)
                return _Opened(files.open(index), int(files.labels[index]), path, tried)
            except OSError as error:
                broken.append(Broken(source, path, reason(error)))
        raise _Hopeless

    def _other(self, draw: Draw, row: int, tried: int, count: int) -> int:
        """Draw the image that stands in for a broken one."""
        seed, position = self.plan.makers[0].views.seed, int(draw.counters.position[row])
        return hash_int(seed, draw.counters.epoch, Stream.REPLACE, position, tried - 1) % count


def _shrinks(views: list[tuple[Augmenter, int]], crops: list[Crop], opened: list[_Opened]) -> Tensor:
    """Return (n,) int64: by how much each image can be smaller than it is, for all of its views."""
    room = torch.tensor([float(o.image.most_shrink) for o in opened]) * _GAP
    for (augmenter, _), crop in zip(views, crops, strict=True):
        if augmenter.config.whole:
            room.zero_()
        sides = torch.tensor(augmenter.img_size)
        room = torch.minimum(room, (crop.box[:, 2:] / sides).amin(dim=1))
    shrink = torch.ones(len(room), dtype=torch.int64)
    for by in reversed(SHRINKS):
        shrink[room >= by * _GAP] = by
    return shrink


def _snapped(crop: Crop, shrink: Tensor, height: Tensor, width: Tensor) -> Crop:
    """Move the edges of crops to whole pixels of the smaller images: by half of one at most, a quarter in the view."""
    by = shrink[:, None]
    if int(by.max()) == 1:
        return crop
    near, far = crop.box[:, :2], crop.box[:, :2] + crop.box[:, 2:]
    near = torch.round(near / by) * by
    # The last pixel of a side may stand for fewer than the others.
    far = torch.minimum(torch.round(far / by) * by, torch.stack([height, width], dim=1))
    return crop._replace(box=torch.cat([near, far - near], dim=1))


def _cut(image: Tensor, box: list[int], augmenter: Augmenter) -> Tensor:
    """Cut a view out of an image (C, H, W) uint8, at the view's size."""
    if augmenter.config.whole:
        return clean_resize(image[None], augmenter.img_size)[0]
    cut = image[None, :, box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
    # On one large photograph torch's uint8 kernel is faster than the matrix products, and the same filter.
    return F.interpolate(cut, size=augmenter.img_size, mode="bilinear", antialias=True)[0]


class FileDraws(Dataset[FileRows]):
    """The draws of an epoch as a dataset of whole batches, for a `DataLoader` with workers."""

    def __init__(self, reader: FileReader, draws: Any) -> None:
        self.reader = reader
        self.draws = draws

    def __getitem__(self, number: int) -> FileRows:
        return self.reader.read(self.draws(number))
