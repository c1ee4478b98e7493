"""Clean images, as probes judge by them: read into batches, and finished on the device."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hjepa_pl.data.augment.augmenter import normalize
from hjepa_pl.data.augment.color import adapt_channels
from hjepa_pl.data.augment.crop_resize import clean_resize
from hjepa_pl.data.loading.image_spec import ImageSpec
from hjepa_pl.data.sources.bad_files import ATTEMPTS, BadFile, BadFiles, reason
from hjepa_pl.data.sources.images import ArrayImages, FileImages, Images
from hjepa_pl.types import CleanBatch, ConfigError
from hjepa_pl.utils.malloc import keep_in_worker
from hjepa_pl.utils.sizes import ImgSize


class RawClean(NamedTuple):
    """A batch of a probe set as the loader gives it."""

    image: Tensor
    """(B, C, H, W) uint8."""
    label: Tensor
    """(B,) int64."""
    place: Tensor
    """(B,) int64: place in the split."""
    broken: tuple[BadFile, ...] = ()
    """Files in whose place others were read."""
    size: int = 0
    """Images in the split."""


class CleanRows(Dataset[RawClean]):
    """Images of a split in their clean form, a batch at a time.

    Args:
        images: The set.
        index: (N,) which of its images make up the split.
        img_size: Side of the result, or its height and width, for files (images in memory are resized on the device).
        channels: 1 or 3.
        name: Of the split, for messages.
    """

    def __init__(self, images: Images, index: Tensor, img_size: ImgSize, channels: int, name: str = "probe") -> None:
        self.name = name
        self.images = images
        self.index = index
        self.img_size = img_size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, places: list[int]) -> RawClean:
        place = torch.tensor(places, dtype=torch.int64)
        chosen = self.index[place]
        if isinstance(self.images, ArrayImages):
            return RawClean(self.images.images[chosen], self.images.labels[chosen], place)
        broken: list[BadFile] = []
        rows = [self._read(self.images, p, broken) for p in places]
        images, labels = torch.stack([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
        return RawClean(images, labels, place, tuple(broken), len(self.index))

    def _read(self, files: FileImages, place: int, broken: list[BadFile]) -> tuple[Tensor, int]:
        """Read one image; a broken one is replaced by the next of the split, with that one's label."""
        for step in range(ATTEMPTS):
            i = int(self.index[(place + step) % len(self.index)])
            try:
                image = clean_resize(files.read(i, self.channels)[None], self.img_size)[0]
                return image, int(files.labels[i])
            except OSError as error:
                broken.append(BadFile(self.name, files.path(i), reason(error)))
        raise ConfigError(
            f"{self.name}: {ATTEMPTS} files in a row cannot be decoded, up to {files.path(i)} ({broken[-1].reason}); "
            "remove them."
        )


def clean_loader(
    rows: CleanRows, places: range, *, batch_size: int, num_workers: int, pin_memory: bool
) -> DataLoader[RawClean]:
    """Make a plain loader of clean batches in the order of `places`."""
    batches: Any = [list(places[i : i + batch_size]) for i in range(0, len(places), batch_size)]
    # The sampler gives lists of places, so that a set in memory is read a batch at a time.
    return DataLoader(
        rows,
        batch_size=None,
        sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=keep_in_worker,
    )


def clean_batch(batch: RawClean, geometry: ImageSpec, bad: BadFiles) -> CleanBatch:
    """Make normalised images of a batch, on the device that it is on; take note of its broken files."""
    bad.add(batch.broken, "is replaced by the next one")
    for name in {file.dataset for file in batch.broken}:
        bad.check(name, bad.of(name), batch.size, batch.size)
    images = adapt_channels(batch.image, geometry.channels).float().div_(255)
    images = normalize(clean_resize(images, geometry.size), geometry.mean, geometry.std)
    return CleanBatch(images, batch.label, batch.place)
