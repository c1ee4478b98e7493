"""Reading of tar shards in an order that is a function of counters.

Each worker slot of each process has shards of its own (see `worker_slots`). A resumed run reads the samples before its
position again, without decoding them.
"""

import random
from collections import deque
from collections.abc import Iterator
from itertools import chain, count

import numpy as np
import webdataset
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from hjepa_pl.data.loading.batches import AT_ONCE
from hjepa_pl.data.sources.shards import ShardImages
from hjepa_pl.data.sources.tar import Sample, read_shard
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.types import ConfigError, Counters


class ShardStream:
    """What one process reads of a set of shards.

    Args:
        shards: The set.
        dataset: Index of the set in the mixture.
        drawn: Images drawn from it in an epoch, over all processes.
        batches: Global batches of an epoch.
        seed: Of all orders.
        rank: Index of this process.
        world_size: Number of processes.
        slots: Worker slots of each process.
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
        slots: int = 1,
    ) -> None:
        self.shards = shards
        self.dataset = dataset
        self.drawn, self.batches = drawn, batches
        self.seed = seed
        self.rank, self.world_size, self.slots = rank, world_size, slots
        self._open: dict[int, _Slot] = {}

    def item(self, counters: Counters, row: int, index: int, attempt: int) -> Sample:
        """Return a row of a batch (see `reader.Source`): a broken sample is replaced by the next ones."""
        return self.sample(counters.step, index, attempt)

    def sample(self, step: int, position: int, ahead: int = 0) -> Sample:
        """Return a sample of a worker slot.

        A sample that replaces a broken one is read again at its own position, so that no other sample is shifted.

        Args:
            step: Number of the global batch since the start of the run.
            position: In the slot (`slot_positions`). Positions must ascend, but for steps back of up to `AT_ONCE`.
            ahead: Number of samples after the position.
        """
        epoch, batch = divmod(step, self.batches)
        number = batch % self.slots
        slot = self._open.get(number)
        if slot is None or slot.epoch != epoch or slot.first > position:
            slot = self._open[number] = _Slot(epoch, self._samples(epoch, number))
        return slot.sample(position, ahead)

    def order(self, epoch: int) -> list[str]:
        """Return the order of all shards in an epoch.

        An epoch that is shorter than a pass continues where the one before it ended, up to a shard.
        """
        n, size = len(self.shards.shards), self.shards.samples
        number, rest = divmod(epoch * self.drawn, size) if size is not None else (epoch, 0)
        first = self._permutation(number)[rest * n // size :] if size is not None else self._permutation(number)
        later = self._permutation(number + 1)
        return [self.shards.shards[i] for i in [*first, *later[~np.isin(later, first)]]]

    def _permutation(self, number: int) -> np.ndarray:
        """Return the order of the shards in a pass."""
        key = hash_int(self.seed, Stream.ORDER, self.dataset, number)
        return np.random.Generator(np.random.PCG64(key)).permutation(len(self.shards.shards))

    def _samples(self, epoch: int, slot: int) -> Iterator[Sample]:
        """Yield the samples of a slot's shards, pass after pass; each pass has every sample once."""
        number = slot * self.world_size + self.rank
        own = self.order(epoch)[number :: self.slots * self.world_size]
        for pass_ in count():
            rng = random.Random(hash_int(self.seed, Stream.SHUFFLE_BUFFER, self.dataset, epoch, number, pass_))
            raw = chain.from_iterable(map(read_shard, own if pass_ == 0 else rng.sample(own, len(own))))
            size = self.shards.shuffle_buffer
            # Filled before the first draw: shards are often sorted by class.
            empty = True
            for sample in webdataset.filters.shuffle(size, initial=size, rng=rng)(raw):
                empty = False
                yield sample
            if empty:
                raise ConfigError(f"the shards {', '.join(own[:3])} hold no image; remove them from datasets.root.")

    def log(self, name: str) -> None:
        """Log what is read of the set; warn if an epoch is too short to reach the end of a shard."""
        samples, shards = self.shards.samples, len(self.shards.shards)
        per_slot = self.drawn // (self.world_size * self.slots)
        if samples is not None and per_slot + self.shards.shuffle_buffer < samples // shards:
            rank_zero_warn(
                f"{name}: each worker draws {per_slot} samples an epoch and starts with a new shard, so the ends of "
                f"shards of {samples // shards} samples are never read; raise epoch_size or shuffle_buffer, or make "
                "smaller shards."
            )
        rank_zero_info(
            f"{name}: {shards} shards of {'unknown' if samples is None else samples} samples, {self.drawn} drawn an "
            f"epoch by {self.world_size} process(es) x {self.slots} worker(s). A run resumed with the same numbers of "
            "processes and workers sees the same images; with others the order changes."
        )


class _Slot:
    """The samples of a worker slot by position, with a window behind it and ahead of it."""

    def __init__(self, epoch: int, samples: Iterator[Sample]) -> None:
        self.epoch = epoch
        self.first = 0
        """Position of the first sample in the window."""
        self._samples = samples
        self._window: deque[Sample] = deque()

    def sample(self, position: int, ahead: int) -> Sample:
        # A reader opens up to AT_ONCE samples before it decodes the first, which may then have to be replaced.
        while self.first <= position - AT_ONCE:
            if self._window:
                self._window.popleft()
            else:
                next(self._samples)
            self.first += 1
        wanted = position - self.first + ahead
        while len(self._window) <= wanted:
            self._window.append(next(self._samples))
        return self._window[wanted]
