"""The plan of an epoch: how long it is, and which image of which dataset is at which position."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from hjepa_pl.data.sources.images import Images
from hjepa_pl.data.sources.shards import ShardImages, known_sizes
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.types import ConfigError

SAMPLINGS = ("weighted", "balanced", "concat", "temperature")


def mixture_weights(
    sampling: str, weights: Sequence[float], sizes: Sequence[int], temperature: float | None
) -> list[float]:
    """Return each dataset's share of the mixture, summing to 1."""
    if sampling not in SAMPLINGS:
        raise ConfigError(f"`sampling={sampling}` is refused: use one of {', '.join(SAMPLINGS)}.")
    if sampling == "temperature" and (temperature is None or not 0 < temperature < float("inf")):
        raise ConfigError(f"`temperature={temperature}` is refused: sampling=temperature needs a number above 0.")
    if sampling != "temperature" and temperature is not None:
        raise ConfigError(
            f"`temperature={temperature}` would do nothing with sampling={sampling}: remove it, or set "
            "sampling=temperature."
        )
    if sampling in ("balanced", "concat") and any(w != 1 for w in weights):
        raise ConfigError(
            f"`datasets.weight={list(weights)}` would do nothing with sampling={sampling}: remove the weights, or set "
            "sampling=weighted."
        )
    if not all(0 < w < float("inf") for w in weights):
        raise ConfigError(f"`datasets.weight={list(weights)}` is refused: give numbers above 0.")
    shares = [float(s) for s in sizes] if sampling == "concat" else [float(w) for w in weights]
    if sampling == "temperature" and temperature is not None:
        # Divided by the largest first, so that a small temperature does not overflow.
        shares = [(s / max(shares)) ** (1 / temperature) for s in shares]
    return [s / sum(shares) for s in shares]


def largest_remainder(shares: Sequence[float], total: int) -> list[int]:
    """Split `total` into whole counts that follow `shares` (which sum to 1) and add up exactly."""
    exact = [s * total for s in shares]
    # A product like .3 x 10 falls short of 3 by rounding: such are whole numbers.
    counts = [int(x + 1e-9) for x in exact]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


class EpochPlan:
    """What is drawn in every epoch.

    Each dataset is gone through by its own seeded permutations, pass after pass without replacement, going on from
    epoch to epoch; the order of the datasets within an epoch is a seeded permutation.

    Attributes:
        counts: How many images each dataset gives to an epoch.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], epoch_size: int, seed: int) -> None:
        self.sizes = list(sizes)
        self.epoch_size = epoch_size
        self.seed = seed
        total = sum(weights)
        if total <= 0 or any(w < 0 for w in weights):
            raise ConfigError(f"`datasets.weight={list(weights)}` is refused: give numbers above 0.")
        self.counts = largest_remainder([w / total for w in weights], epoch_size)
        for i, count in enumerate(self.counts):
            if count == 0:
                raise ConfigError(
                    f"`datasets.weight` of dataset number {i + 1} is {weights[i] / total:.2g} of the mixture, which is "
                    f"not one image in an epoch of {epoch_size}: raise the weight or epoch_size, or remove the dataset."
                )

    def _permutation(self, n: int, *key: int) -> np.ndarray:
        return np.random.Generator(np.random.PCG64(hash_int(self.seed, *key))).permutation(n)

    def _drawn(self, dataset: int, epoch: int) -> np.ndarray:
        """Return what a dataset gives to an epoch, (count,) int64, in the order of drawing."""
        size, count = self.sizes[dataset], self.counts[dataset]
        start, stop = epoch * count, (epoch + 1) * count
        parts = []
        for lap in range(start // size, (stop - 1) // size + 1):
            order = self._permutation(size, Stream.ORDER, dataset, lap)
            parts.append(order[max(start - lap * size, 0) : min(stop - lap * size, size)])
        return np.concatenate(parts)

    def draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return dataset and index of every position of an epoch, both (epoch_size,) int64."""
        source = np.repeat(np.arange(len(self.sizes)), self.counts)
        source = source[self._permutation(self.epoch_size, Stream.SOURCE, epoch)]
        index = np.empty(self.epoch_size, dtype=np.int64)
        for dataset in range(len(self.sizes)):
            index[source == dataset] = self._drawn(dataset, epoch)
        return source, index


def usable_size(epoch_size: int, batch_size: int, world_size: int) -> int:
    """Return the number of images in the whole global batches of an epoch; refuse less than one batch."""
    whole = batch_size * world_size
    if epoch_size < whole:
        raise ConfigError(
            f"`batch_size={batch_size}` x {world_size} process(es) is more than the {epoch_size} images of an epoch: "
            f"lower it to at most {epoch_size // world_size}, or set epoch_size."
        )
    return epoch_size // whole * whole


def plan_epoch(data: Any, sets: Sequence[Images | ShardImages], processes: int) -> EpochPlan:
    """Return the plan of whole global batches of the sets that a data module mixes."""
    sizes = known_sizes(sets, data.epoch_size, data.sampling)
    shares = mixture_weights(data.sampling, [d.weight for d in data.datasets], sizes, data.temperature)
    asked = data.epoch_size or sum(sizes)
    total = usable_size(asked, data.batch_size, processes)
    if data.epoch_size and total != asked:
        rank_zero_info(f"epoch_size {asked} is rounded down to {total}, whole batches over all processes.")
    # Of a stream the plan draws the positions only: as many "places" as there are positions will do.
    sizes = [min(n, total) if isinstance(s, ShardImages) else n for n, s in zip(sizes, sets, strict=True)]
    return EpochPlan(sizes, shares, total, data.seed)
