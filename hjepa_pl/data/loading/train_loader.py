"""The training loader: an iterable that knows its place in the run from a counter, and from nothing else."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from hjepa_pl.data.loading.batches import Draw, FileRows, RawBatch, memory_groups
from hjepa_pl.data.loading.mixture import EpochPlan, usable_size
from hjepa_pl.data.loading.reader import FileDraws, FileReader
from hjepa_pl.data.loading.shard_stream import ShardStream, lane_places, lanes_of
from hjepa_pl.data.sources.bad_files import ATTEMPTS, BadFile, BadFiles
from hjepa_pl.data.sources.images import ArrayImages, FileImages, Images
from hjepa_pl.data.sources.shards import ShardImages
from hjepa_pl.types import ConfigError, Counters
from hjepa_pl.utils.malloc import keep_in_worker


class TrainLoader:
    """Batches of a mixture, in the order of its plan.

    Of a streamed set the plan says only at which positions it is drawn; there stands the next sample of a lane
    (`ShardStream`).

    Args:
        sets: The datasets.
        names: Their names, for messages.
        plan: Of as many images as whole global batches hold.
        reader: Decodes files and cuts the views; None if every set is in memory.
        batch_size: Images per process.
        world_size: Number of processes.
        rank: Number of this process.
        num_workers: Workers that decode files.
        position: Tells how many batches have been processed since the start of the run; 0 if not given.
        limit: Batches per epoch of the trainer, if it is told to stop earlier; the next one goes on from there.
        pin_memory: Whether the memory of batches is pinned.
        bad: Takes note of files that cannot be decoded.
        ways: `ViewPlan.dataset_augmenters`.
        device: Where the images of sets in memory are kept, and gathered; the host if not given.
    """

    def __init__(
        self,
        sets: Sequence[Images | ShardImages],
        names: list[str],
        plan: EpochPlan,
        reader: FileReader | None,
        *,
        batch_size: int,
        world_size: int = 1,
        rank: int = 0,
        num_workers: int = 0,
        position: Callable[[], int] | None = None,
        limit: int | None = None,
        pin_memory: bool = False,
        bad: BadFiles | None = None,
        ways: Sequence[int] = (),
        device: torch.device | None = None,
    ) -> None:
        self.names = names
        self.plan = plan
        self.reader = reader
        self.batch_size = batch_size
        self.world_size = world_size
        self.rank = rank
        self.num_workers = num_workers
        self.position = position or (lambda: 0)
        self.limit = max(1, min(limit or len(self), len(self)))
        self.pin_memory = pin_memory
        self.bad = bad or BadFiles()
        self.ways = ways
        self._sets = sets
        in_memory = [s if isinstance(s, ArrayImages) else None for s in sets]
        self._memory = [s if s is None or device is None else s.on(device) for s in in_memory]
        self._broken: list[set[str]] = [set() for _ in sets]
        self._tried = [0] * len(sets)
        usable_size(plan.epoch_size, batch_size, world_size)

    def __len__(self) -> int:
        return self.plan.epoch_size // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[RawBatch]:
        # A generator: the position is read when the first batch is asked for, after a resumed run has loaded it.
        start = int(self.position())
        stop = (start // self.limit + 1) * self.limit
        while start < stop:
            epoch, first = divmod(start, len(self))
            last = min(len(self), first + stop - start)
            yield from self._of_epoch(epoch, first, last)
            start += last - first

    def _of_epoch(self, epoch: int, first: int, last: int) -> Iterator[RawBatch]:
        source, index = (torch.from_numpy(a) for a in self.plan.draw(epoch))
        for i, images in enumerate(self._sets):
            if isinstance(images, ShardImages):
                lanes = lanes_of(self.num_workers)
                index[source == i] = lane_places(source, i, self.batch_size, self.world_size, lanes)
                if first:
                    rank_zero_info(
                        f"{self.names[i]}: going on in the middle of an epoch, at batch {first} of {len(self)}; the "
                        "samples before it are read again and passed over."
                    )
        draw = partial(_draw, source, index, epoch, len(self), self.batch_size, self.world_size, self.rank)
        numbers = range(first, last)
        files: Iterator[FileRows | None] = iter(())
        if self.reader is not None:
            files = iter(self._file_loader(self.reader, draw, numbers))
        for number in numbers:
            yield self._assemble(draw(number), next(files) if self.reader is not None else None)

    def _file_loader(self, reader: FileReader, draw: Callable[[int], Draw], numbers: range) -> DataLoader[FileRows]:
        return DataLoader(
            FileDraws(reader, draw),
            batch_size=None,
            sampler=numbers,
            num_workers=min(self.num_workers, len(numbers)),
            pin_memory=self.pin_memory,
            worker_init_fn=keep_in_worker,
        )

    def _assemble(self, draw: Draw, files: FileRows | None) -> RawBatch:
        label = torch.full_like(draw.source, -1)
        for i, images in enumerate(self._memory):
            if images is not None:
                rows = draw.source == i
                label[rows] = images.labels[draw.place[rows]]
        groups = memory_groups(self._memory, draw, self.ways)
        if self.pin_memory:  # or the copy to the device would wait for all that is queued there
            groups = tuple(
                g._replace(images=tuple(x if x.is_cuda else x.pin_memory() for x in g.images)) for g in groups
            )
        if files is not None:
            self._count_broken(draw.source[files.rows], files)
            label[files.rows] = files.label
            groups += tuple(files.groups)  # a list by now: DataLoader's way with tuples
        return RawBatch(groups, label, draw.source, draw.counters)

    def _count_broken(self, source: Tensor, files: FileRows) -> None:
        for i in torch.unique(source).tolist():
            self._tried[i] += int((source == i).sum())
        bad = [BadFile(self.names[b.source], b.path, b.reason) for b in files.broken]
        self.bad.add(bad, "is replaced by another draw")
        for i in {b.source for b in files.broken}:
            paths = [b.path for b in files.broken if b.source == i]
            self._tried[i] += len(paths)
            self._broken[i].update(paths)
            # Judged by files, not by draws.
            self.bad.check(self.names[i], self._broken[i], self._tried[i], len(self._sets[i]))
        if files.hopeless:
            raise ConfigError(
                f"{bad[-1].dataset}: {ATTEMPTS} files in a row cannot be decoded, the last is {bad[-1].path} "
                f"({bad[-1].reason}); remove them."
            )


def _draw(
    source: Tensor, index: Tensor, epoch: int, batches: int, batch_size: int, world_size: int, rank: int, number: int
) -> Draw:
    """Cut out what one rank reads for a global batch of an epoch."""
    start = (number * world_size + rank) * batch_size
    position = torch.arange(start, start + batch_size)
    counters = Counters(epoch, epoch * batches + number, position)
    return Draw(source[position], index[position], counters)


def file_sets(
    sets: Sequence[Images | ShardImages],
    plan: EpochPlan,
    batches: int,
    *,
    world_size: int = 1,
    rank: int = 0,
    num_workers: int = 0,
) -> list[FileImages | ShardStream | None]:
    """Return what `FileReader` reads: files as they are, shards as streams, None in place of sets in memory.

    Args:
        sets: The datasets.
        plan: Of the epoch.
        batches: Global batches of an epoch.
        world_size: Number of processes.
        rank: Number of this process.
        num_workers: Workers of each process.
    """
    ours = {"world_size": world_size, "rank": rank, "lanes": lanes_of(num_workers)}
    found: list[FileImages | ShardStream | None] = []
    for i, images in enumerate(sets):
        if isinstance(images, ShardImages):
            found.append(ShardStream(images, i, drawn=plan.counts[i], batches=batches, seed=plan.seed, **ours))
        else:
            found.append(images if isinstance(images, FileImages) else None)
    return found
