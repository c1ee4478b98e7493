"""Reading shards: each lane of each process has shards of its own, and gives its samples in an order by counters.

A lane is what one worker reads: batch n of an epoch comes from lane n % lanes, whichever worker makes it. So what
stands at a position is a function of (seed, epoch, position), of the shards, and of the numbers of processes and lanes
(of workers), and of nothing else. A resumed run finds its place by reading past the samples before it, undecoded.
"""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, count

import numpy as np
import torch
import webdataset
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from hjepa_pl.data.loading.batches import AT_ONCE
from hjepa_pl.data.sources.shards import ShardImages
from hjepa_pl.data.sources.tar import Sample, read_shard
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.types import ConfigError


class ShardStream:
    """What one process reads of a set of shards.

    Args:
        shards: The set.
        dataset: Number of the set in the mixture.
        drawn: Images that it gives to an epoch, over all processes.
        batches: Global batches of an epoch.
        seed: Of all orders.
        rank: Number of this process.
        world_size: Number of processes.
        lanes: Lanes of each process.
    """

    def __init__(
        self,
        shards: ShardImages,
        dataset: int,
        *,
        drawn: int,
        batches: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        lanes: int = 1,
    ) -> None:
        self.shards = shards
        self.dataset = dataset
        self.drawn, self.batches = drawn, batches
        self.seed = seed
        self.rank, self.world_size, self.lanes = rank, world_size, lanes
        self._open: dict[int, _Lane] = {}

    def __len__(self) -> int:
        return len(self.shards)

    def sample(self, step: int, place: int, ahead: int = 0) -> Sample:
        """Return the sample at a place of a lane, or, `ahead` of it, one that stands in for a broken one.

        A stand-in is read again at its own place, so that broken samples shift no other.

        Args:
            step: Number of the global batch since the start of the run.
            place: See `lane_places`; quick if places are asked for in ascending order, up to `AT_ONCE` to and fro.
            ahead: How many samples further on.
        """
        epoch, number = divmod(step, self.batches)
        which = number % self.lanes
        lane = self._open.get(which)
        if lane is None or lane.epoch != epoch or lane.first > place:
            lane = self._open[which] = _Lane(epoch, self._samples(epoch, which))
        return lane.sample(place, ahead)

    def order(self, epoch: int) -> list[str]:
        """Return the order of all shards in an epoch.

        An epoch shorter than a pass goes on about where the one before it ended, so that all shards get their turn.
        """
        n, size = len(self.shards.shards), self.shards.samples
        lap, rest = divmod(epoch * self.drawn, size) if size is not None else (epoch, 0)
        first = self._permutation(lap)[rest * n // size :] if size is not None else self._permutation(lap)
        later = self._permutation(lap + 1)
        return [self.shards.shards[i] for i in [*first, *later[~np.isin(later, first)]]]

    def _permutation(self, lap: int) -> np.ndarray:
        key = hash_int(self.seed, Stream.ORDER, self.dataset, lap)
        return np.random.Generator(np.random.PCG64(key)).permutation(len(self.shards.shards))

    def _samples(self, epoch: int, lane: int) -> Iterator[Sample]:
        """Yield the samples of a lane's shards, pass after pass; each pass has every one of them once."""
        number = lane * self.world_size + self.rank
        own = self.order(epoch)[number :: self.lanes * self.world_size]
        for lap in count():
            key = hash_int(self.seed, Stream.SHUFFLE_BUFFER, self.dataset, epoch, number, lap)
            draws = random.Random(key)
            raw = chain.from_iterable(map(read_shard, own if lap == 0 else draws.sample(own, len(own))))
            size = self.shards.shuffle_buffer
            # Filled before the first draw: shards are often sorted by class.
            empty = True
            for sample in webdataset.filters.shuffle(size, initial=size, rng=draws)(raw):
                empty = False
                yield sample
            if empty:
                raise ConfigError(f"the shards {', '.join(own[:3])} hold no image: remove them from datasets.root.")


class _Lane:
    """A stream of samples that knows its place, and can look ahead of it and a little back."""

    def __init__(self, epoch: int, samples: Iterator[Sample]) -> None:
        self.epoch = epoch
        self.first = 0
        """Place of the first sample that is still held."""
        self._samples = samples
        self._held: deque[Sample] = deque()

    def sample(self, place: int, ahead: int) -> Sample:
        # A reader has as many samples open before it decodes the first, which may then want a stand-in.
        while self.first <= place - AT_ONCE:
            if self._held:
                self._held.popleft()
            else:
                next(self._samples)
            self.first += 1
        wanted = place - self.first + ahead
        while len(self._held) <= wanted:
            self._held.append(next(self._samples))
        return self._held[wanted]


def lane_places(source: Tensor, dataset: int, batch_size: int, world_size: int, lanes: int) -> Tensor:
    """Return at which place of its lane each sample of a streamed set stands.

    Args:
        source: (epoch_size,) dataset of every position of an epoch of whole global batches.
        dataset: Number of the set.
        batch_size: Images per process.
        world_size: Number of processes.
        lanes: Lanes of each process.

    Returns:
        int64, one for each position of the set, in order.
    """
    drawn = (source == dataset).view(-1, world_size, batch_size)
    place = torch.empty(drawn.shape, dtype=torch.int64)
    for lane in range(min(lanes, len(drawn))):
        of_lane = drawn[lane::lanes].transpose(0, 1)  # processes x batches x images
        running = of_lane.flatten(1).cumsum(1) - 1
        place[lane::lanes] = running.view(of_lane.shape).transpose(0, 1)
    return place[drawn]


def lanes_of(num_workers: int) -> int:
    """Return the number of lanes of a process; without workers it reads by itself, in one."""
    return max(1, num_workers)


def fitting_workers(sets: Sequence[object], given: int | None, free: int, world_size: int) -> int:
    """Return the number of workers of a process, so that each of them, in every process, has a shard of every set.

    Args:
        sets: The mixture.
        given: `num_workers` as given.
        free: What is taken where it is not given, and there are shards enough.
        world_size: Number of processes.
    """
    fewest = min((len(s.shards) for s in sets if isinstance(s, ShardImages)), default=None)
    asked = free if given is None else given
    if fewest is None:
        return asked
    if fewest < world_size * (1 if given is None else lanes_of(given)):
        workers = "1 worker" if given is None else f"num_workers={given}"
        lower = f"lower num_workers to {fewest // world_size}, or make" if fewest >= world_size else "make"
        raise ConfigError(
            f"`datasets` (webdataset) has {fewest} shard(s), fewer than {workers} x {world_size} process(es), each of "
            f"which reads shards of its own: {lower} more and smaller shards (`hjepa shards --per-shard`)."
        )
    return min(asked, fewest // world_size) if given is None else given


def tell_streams(names: Sequence[str], sets: Sequence[object]) -> None:
    """Log what is streamed, and what a resumed run may rely on; warn of an epoch too short to reach a shard's end."""
    for name, stream in zip(names, sets, strict=True):
        if isinstance(stream, ShardStream):
            size = stream.shards.samples
            lane = stream.drawn // (stream.world_size * stream.lanes)
            if size is not None and lane + stream.shards.shuffle_buffer < size // len(stream.shards.shards):
                rank_zero_warn(
                    f"{name}: each worker draws {lane} samples an epoch and begins with a new shard, so the ends of "
                    f"shards of {size // len(stream.shards.shards)} samples are not seen: raise epoch_size or "
                    "shuffle_buffer, or make smaller shards."
                )
            rank_zero_info(
                f"{name}: {len(stream.shards.shards)} shards with {'unknown' if size is None else size} samples, "
                f"{stream.drawn} of them an epoch, dealt to {stream.world_size} process(es) x {stream.lanes} "
                "worker(s). A run resumed with the same numbers of both sees the same images: between epochs at no "
                "cost, within one by reading past those before. With other numbers the order is another."
            )
