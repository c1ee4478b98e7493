"""Clean images for probes and prediction: read into batches, and normalized on the device."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hjepa_pl.data.augment.augmenter import normalize
from hjepa_pl.data.augment.color import adapt_channels
from hjepa_pl.data.augment.crop_resize import clean_resize
from hjepa_pl.data.loading.image_spec import ImageSpec
from hjepa_pl.data.sources.bad_files import ATTEMPTS, BadFile, BadFiles, reason
from hjepa_pl.data.sources.images import EncodedImages, IndexedImages, is_encoded, is_in_memory
from hjepa_pl.types import CleanBatch, ConfigError
from hjepa_pl.utils.malloc import keep_in_worker
from hjepa_pl.utils.sizes import ImgSize


class RawClean(NamedTuple):
    """A batch of clean images as read by the loader."""

    image: Tensor
    """(B, C, H, W) uint8."""
    label: Tensor
    """(B,) int64."""
    position: Tensor
    """(B,) int64: position in the split."""
    broken: tuple[BadFile, ...] = ()
    """Files that were replaced by others."""
    size: int = 0
    """Images in the split."""


class CleanRows(Dataset[RawClean]):
    """The images of a split without augmentation, a batch at a time.

    Args:
        images: The set.
        index: (N,) int64: which of its images are in the split.
        img_size: Of the result, for files; images in memory are resized on the device.
        channels: 1 or 3.
        name: Of the split, for messages.
    """

    def __init__(
        self, images: IndexedImages, index: Tensor, img_size: ImgSize, channels: int, name: str = "probe"
    ) -> None:
        self.name = name
        self.images = images
        self.index = index
        self.img_size = img_size
        self.channels = channels

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, positions: list[int]) -> RawClean:
        position = torch.tensor(positions, dtype=torch.int64)
        if is_in_memory(self.images):
            chosen = self.index[position]
            return RawClean(self.images.images[chosen], self.images.labels[chosen], position)
        assert is_encoded(self.images)
        broken: list[BadFile] = []
        rows = [self._read(self.images, p, broken) for p in positions]
        images, labels = torch.stack([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
        return RawClean(images, labels, position, tuple(broken), len(self.index))

    def _read(self, images: EncodedImages, position: int, broken: list[BadFile]) -> tuple[Tensor, int]:
        """Read one image and its label; a bad one is replaced by the next of the split."""
        for step in range(ATTEMPTS):
            item = images.item(int(self.index[(position + step) % len(self.index)]))
            try:
                image = item.open().pixels(self.channels)
            except OSError as error:
                broken.append(BadFile(item.path, self.name, reason(error)))
                continue
            return clean_resize(image[None], self.img_size)[0], item.label
        path, _, why = broken[-1]
        raise ConfigError(
            f"{self.name}: {ATTEMPTS} files in a row cannot be decoded, the last is {path} ({why}); remove them."
        )


def clean_loader(
    rows: CleanRows, positions: range, *, batch_size: int, num_workers: int, pin_memory: bool
) -> DataLoader[RawClean]:
    """Return a loader of the batches of some positions, in their order."""
    batches: Any = [list(positions[i : i + batch_size]) for i in range(0, len(positions), batch_size)]
    # A sampler of lists, so that a set in memory is read a batch at a time.
    return DataLoader(
        rows,
        batch_size=None,
        sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=keep_in_worker,
    )


def clean_batch(batch: RawClean, spec: ImageSpec, bad: BadFiles) -> CleanBatch:
    """Return the normalized images of a batch, on its device, and report its bad files."""
    bad.add(batch.broken, "is replaced by the next one")
    for name in {file.dataset for file in batch.broken}:
        bad.check(name, bad.of(name), batch.size, batch.size)
    images = adapt_channels(batch.image, spec.channels).float().div_(255)
    images = normalize(clean_resize(images, spec.size), spec.mean, spec.std)
    return CleanBatch(images, batch.label, batch.position)
