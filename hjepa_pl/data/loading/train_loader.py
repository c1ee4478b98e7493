"""The training loader: an iterable whose position in the run is a function of a counter, and of nothing else."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from hjepa_pl.data.loading.batches import Draw, FileRows, RawBatch
from hjepa_pl.data.loading.memory_sets import MemorySets, memory_device
from hjepa_pl.data.loading.reader import FileDraws, FileReader, IndexedSource, Source
from hjepa_pl.data.loading.shard_stream import ShardStream
from hjepa_pl.data.loading.train_data import TrainData, usable_size
from hjepa_pl.data.loading.trainer_info import TrainerInfo
from hjepa_pl.data.loading.worker_slots import num_slots, slot_positions
from hjepa_pl.data.sources.bad_files import ATTEMPTS, BadFiles
from hjepa_pl.data.sources.images import is_encoded
from hjepa_pl.data.sources.shards import is_streamed
from hjepa_pl.types import ConfigError, Counters
from hjepa_pl.utils.malloc import keep_in_worker


class TrainLoader:
    """Batches of a mixture, in the order of its epoch plan.

    The plan says at which positions a streamed set is drawn; the image there is the next one of a worker slot
    (`ShardStream`).

    Args:
        data: The mixture.
        batch_size: Images per process.
        num_workers: Workers that decode files.
        trainer: Process, device, and position in the run.
        bad: Takes the files that cannot be decoded.
        device: Where to keep the images of sets in memory; by default the GPU if they are small, or the host.
    """

    def __init__(
        self,
        data: TrainData,
        *,
        batch_size: int,
        num_workers: int = 0,
        trainer: TrainerInfo | None = None,
        bad: BadFiles | None = None,
        device: torch.device | None = None,
    ) -> None:
        # Lightning looks for a loader with a state; this one takes its position from the Trainer.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        self.data = data
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.trainer = trainer or TrainerInfo()
        self.bad = bad or BadFiles()
        usable_size(data.plan.epoch_size, batch_size, self.trainer.world_size)
        limit = self.trainer.limit
        if isinstance(limit, float):
            limit = int(len(self) * limit)
        self.limit = max(1, min(limit or len(self), len(self)))
        """Batches of an epoch of the Trainer; its next epoch continues from there."""
        device = device or memory_device(data.sets, self.trainer.device)
        self._memory = MemorySets(data.sets, data.views.dataset_augmenters, device)
        self.reader = self._make_reader()
        self._tried = dict.fromkeys(data.names, 0)
        self._broken: dict[str, set[str]] = {name: set() for name in data.names}

    def __len__(self) -> int:
        return self.data.plan.epoch_size // (self.batch_size * self.trainer.world_size)

    def __iter__(self) -> Iterator[RawBatch]:
        # A generator: the position is read with the first batch, after a resumed run has loaded it.
        start = int(self.trainer.position())
        stop = (start // self.limit + 1) * self.limit
        while start < stop:
            epoch, first = divmod(start, len(self))
            last = min(len(self), first + stop - start)
            yield from self._of_epoch(epoch, first, last)
            start += last - first

    def _make_reader(self) -> FileReader | None:
        """Return what decodes files and shards, None if every set is in memory."""
        if all(images.in_memory for images in self.data.sets):
            return None
        return FileReader(self._sources(), self.data.names, self.data.views, self.data.channels)

    def _sources(self) -> Sequence[Source | None]:
        """Return what the reader reads for each set, None for sets in memory."""
        plan, sources = self.data.plan, list[Source | None]()
        for i, images in enumerate(self.data.sets):
            if is_streamed(images):
                stream = ShardStream(
                    images,
                    i,
                    drawn=plan.counts[i],
                    batches=len(self),
                    seed=plan.seed,
                    rank=self.trainer.rank,
                    world_size=self.trainer.world_size,
                    slots=num_slots(self.num_workers),
                )
                stream.log(self.data.names[i])
                sources.append(stream)
            elif is_encoded(images):
                sources.append(IndexedSource(images, plan.seed))
            else:
                sources.append(None)
        return sources

    def _of_epoch(self, epoch: int, first: int, last: int) -> Iterator[RawBatch]:
        """Yield the batches `first` to `last - 1` of an epoch."""
        source, indices = (torch.from_numpy(a) for a in self.data.plan.draw(epoch))
        self._place_streams(source, indices, first)
        draw = partial(
            _draw, source, indices, epoch, len(self), self.batch_size, self.trainer.world_size, self.trainer.rank
        )
        numbers = range(first, last)
        files: Iterator[FileRows | None] = iter(())
        if self.reader is not None:
            files = iter(self._file_loader(self.reader, draw, numbers))
        for number in numbers:
            yield self._assemble(draw(number), next(files) if self.reader is not None else None)

    def _place_streams(self, source: Tensor, indices: Tensor, first: int) -> None:
        """Write the slot positions of streamed sets into `indices`."""
        for i, images in enumerate(self.data.sets):
            if images.streamed:
                slots = num_slots(self.num_workers)
                positions = slot_positions(source, i, self.batch_size, self.trainer.world_size, slots)
                indices[source == i] = positions
                if first:
                    rank_zero_info(
                        f"{self.data.names[i]}: resumes within an epoch, at batch {first} of {len(self)}; the samples "
                        "before it are read again and skipped."
                    )

    def _file_loader(self, reader: FileReader, draw: Callable[[int], Draw], numbers: range) -> DataLoader[FileRows]:
        return DataLoader(
            FileDraws(reader, draw),
            batch_size=None,
            sampler=numbers,
            num_workers=min(self.num_workers, len(numbers)),
            pin_memory=self.trainer.device.type == "cuda",
            worker_init_fn=keep_in_worker,
        )

    def _assemble(self, draw: Draw, files: FileRows | None) -> RawBatch:
        label = self._memory.labels(draw)
        groups = self._memory.groups(draw)
        if self.trainer.device.type == "cuda":  # or the copy to the device would wait for all work queued there
            groups = tuple(
                g._replace(images=tuple(x if x.is_cuda else x.pin_memory() for x in g.images)) for g in groups
            )
        if files is not None:
            self._count_broken(draw.source[files.rows], files)
            label[files.rows] = files.label
            groups += tuple(files.groups)  # a list: DataLoader makes one of a tuple
        return RawBatch(groups, label, draw.source, draw.counters)

    def _count_broken(self, source: Tensor, files: FileRows) -> None:
        """Report the bad files of a batch, and stop the run if there are too many."""
        for i in torch.unique(source).tolist():
            self._tried[self.data.names[i]] += int((source == i).sum())
        if not files.broken:
            return
        self.bad.add(files.broken, "is replaced by another draw")
        for name, images in zip(self.data.names, self.data.sets, strict=True):
            paths = [file.path for file in files.broken if file.dataset == name]
            if paths:
                self._tried[name] += len(paths)
                self._broken[name].update(paths)
                # Files count, not draws.
                self.bad.check(name, self._broken[name], self._tried[name], len(images))
        if files.exhausted:
            path, name, why = files.broken[-1]
            raise ConfigError(
                f"{name}: {ATTEMPTS} files in a row cannot be decoded, the last is {path} ({why}); remove them."
            )


def _draw(
    source: Tensor, indices: Tensor, epoch: int, batches: int, batch_size: int, world_size: int, rank: int, number: int
) -> Draw:
    """Return what one rank reads for a global batch of an epoch."""
    start = (number * world_size + rank) * batch_size
    position = torch.arange(start, start + batch_size)
    counters = Counters(epoch, epoch * batches + number, position)
    return Draw(source[position], indices[position], counters)
