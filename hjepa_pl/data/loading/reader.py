"""How files are read into a batch: decoded, cropped and let go, one after the other."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from hjepa_pl.data.augment.augmenter import Augmenter, Crop
from hjepa_pl.data.augment.crop_resize import clean_resize
from hjepa_pl.data.augment.multicrop import ViewPlan
from hjepa_pl.data.loading.batches import AT_ONCE, Broken, Draw, FileRows, RawGroup
from hjepa_pl.data.loading.shard_stream import ShardStream
from hjepa_pl.data.sources.bad_files import ATTEMPTS, reason
from hjepa_pl.data.sources.decode import SHRINKS, ImageFile
from hjepa_pl.data.sources.images import FileImages
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.types import Counters

_GAP = 2
"""How much smaller than decoded a view must be for the decoder to leave out the rest: then the result is "very close"
to that of the whole image (Pillow, on `reducing_gap`), here by under a level of 255 in the mean."""


class _Opened(NamedTuple):
    """A file that may stand in a row of the batch."""

    image: ImageFile
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
        way_of = torch.tensor([self.plan.index(i) for i in range(len(self.sets))])[draw.source[rows]]
        label = torch.full((len(rows),), -1)
        groups, broken = [], list[Broken]()
        for way in range(len(self.plan.augmenters)):
            chosen = torch.nonzero(way_of == way)[:, 0]
            if len(chosen):
                cuts = self._empty(rows[chosen], self.plan.at(draw.counters.step, way))
                try:
                    for places in torch.arange(len(chosen)).split(AT_ONCE):
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
        """Cut the views of some rows out of their files; what turns out broken is replaced, as in `_open`."""
        rows = cuts.rows[places]
        opened = [self._open(draw, row, broken, attempt) for row in rows.tolist()]
        cuts.labels[places] = torch.tensor([o.label for o in opened])
        sizes = [(o.image.height, o.image.width) for o in opened]
        height, width = torch.tensor(sizes).T
        crops = _crops(cuts, places, draw.counters, height, width)
        shrink = _shrinks(cuts.views, crops, opened)
        parts = _parts(cuts, places, crops, shrink, height, width)
        for i, (place, by) in enumerate(zip(places.tolist(), shrink.tolist(), strict=True)):
            here = places[i : i + 1]
            try:
                image = opened[i].image.pixels(self.channels, by)
            except OSError as error:
                broken.append(Broken(int(draw.source[rows[i]]), opened[i].path, reason(error)))
                self._fill(cuts, here, draw, broken, opened[i].attempt + 1)
                continue
            part = [p[i] for p in parts]
            if by == 1 and image.shape[1:] != sizes[i]:  # turned, and the header did not tell
                sides = torch.tensor(image.shape[1:])[:, None]
                part = [p[0] for p in _parts(cuts, here, _crops(cuts, here, draw.counters, *sides), None, *sides)]
            for (augmenter, _), images, (box, flip) in zip(cuts.views, cuts.images, part, strict=True):
                view = _cut(image, box, augmenter)
                images[place] = view.flip(-1) if flip else view

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
        seed, position = self.plan.augmenters[0].views.seed, int(draw.counters.position[row])
        return hash_int(seed, draw.counters.epoch, Stream.REPLACE, position, tried - 1) % count


def _crops(cuts: _Cuts, places: Tensor, counters: Counters, height: Tensor, width: Tensor) -> list[Crop]:
    """Draw the crops of some rows, in images of these sizes, for each view."""
    position = counters.position[cuts.rows[places]]
    return [augmenter.boxes(height, width, counters.epoch, position, view) for augmenter, view in cuts.views]


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


def _parts(
    cuts: _Cuts, places: Tensor, crops: list[Crop], shrink: Tensor | None, height: Tensor, width: Tensor
) -> list[list[tuple[list[int], bool]]]:
    """Note where the crops of some rows lie, and return for each view and row its box in the decoded image, and flip.

    In images that are decoded smaller, edges move to whole pixels: by half of one at most, a quarter in the view.
    """
    found = []
    for boxes, crop in zip(cuts.boxes, crops, strict=True):
        box = crop.box
        if shrink is not None and int(shrink.max()) > 1:
            by = shrink[:, None]
            near = torch.round(box[:, :2] / by)
            size = torch.round((box[:, :2] + box[:, 2:]) / by) - near
            # The last pixel of a side may stand for fewer than the others.
            far = torch.minimum((near + size) * by, torch.stack([height, width], dim=1))
            crop = Crop(torch.cat([near * by, far - near * by], dim=1), crop.flip)
            box = torch.cat([near, size], dim=1)
        boxes[places] = crop.relative(height, width)
        found.append(list(zip(box.int().tolist(), crop.flip.tolist(), strict=True)))
    return found


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
