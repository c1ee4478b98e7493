"""The mixture of datasets: their weights, and which image of which dataset is at each position of an epoch."""

from collections.abc import Sequence

import numpy as np

from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.wording import as_typed

SAMPLINGS = ("weighted", "balanced", "concat", "temperature")


def mixture_weights(
    sampling: str, weights: Sequence[float], sizes: Sequence[int], temperature: float | None
) -> list[float]:
    """Return the fraction of each dataset in the mixture; they sum to 1.

    Args:
        sampling: `weighted` (by `weights`), `balanced` (equal), `concat` (by `sizes`) or `temperature` (by
            weight ** (1 / temperature)).
        weights: Of the datasets.
        sizes: Their numbers of images.
        temperature: For sampling=temperature only.

    Raises:
        ConfigError: If a value is invalid or has no effect.
    """
    if sampling not in SAMPLINGS:
        raise ConfigError(
            f"invalid `data.sampling={sampling}`: must be {', '.join(SAMPLINGS[:-1])} or {SAMPLINGS[-1]}."
        )
    if sampling == "temperature" and (temperature is None or not 0 < temperature < float("inf")):
        raise ConfigError(
            f"invalid `data.temperature={as_typed(temperature)}`: must be a number > 0 with sampling=temperature."
        )
    if sampling != "temperature" and temperature is not None:
        raise ConfigError(
            f"invalid `data.temperature={as_typed(temperature)}`: has no effect with sampling={sampling}; remove it, "
            "or set sampling to temperature."
        )
    if sampling in ("balanced", "concat") and any(w != 1 for w in weights):
        weight = next(w for w in weights if w != 1)
        raise ConfigError(
            f"invalid `datasets.weight={as_typed(weight)}`: has no effect with sampling={sampling}; remove the "
            "weights, or set sampling to weighted."
        )
    _check_weights(weights)
    parts = [float(s) for s in sizes] if sampling == "concat" else [float(w) for w in weights]
    if sampling == "temperature" and temperature is not None:
        # Divided by the largest first, so that a small temperature does not overflow.
        parts = [(p / max(parts)) ** (1 / temperature) for p in parts]
    return [p / sum(parts) for p in parts]


def _check_weights(weights: Sequence[float]) -> None:
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise ConfigError(f"invalid `datasets.weight={as_typed(weight)}`: must be a number > 0.")


def largest_remainder(fractions: Sequence[float], total: int) -> list[int]:
    """Split `total` into whole counts in proportion to `fractions` (which sum to 1), by the largest remainders."""
    exact = [f * total for f in fractions]
    # A product such as .3 x 10 may fall below 3 by rounding.
    counts = [int(x + 1e-9) for x in exact]
    order = sorted(range(len(fractions)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


class EpochPlan:
    """What is drawn in each epoch.

    Each dataset is drawn by seeded permutations without replacement, pass after pass, continued from epoch to epoch.
    The order of the datasets within an epoch is a seeded permutation.

    Args:
        sizes: Numbers of images of the datasets.
        weights: Of the datasets.
        epoch_size: Number of images in an epoch.
        seed: Of the permutations.

    Attributes:
        counts: Number of images of each dataset in an epoch.

    Raises:
        ConfigError: If a weight is invalid, or too small for one image in an epoch.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], epoch_size: int, seed: int) -> None:
        _check_weights(weights)
        self.sizes = list(sizes)
        self.epoch_size = epoch_size
        self.seed = seed
        total = sum(weights)
        self.counts = largest_remainder([w / total for w in weights], epoch_size)
        for i, count in enumerate(self.counts):
            if count == 0:
                raise ConfigError(
                    f"the weight of dataset number {i + 1} is {weights[i] / total:.2g} of the mixture, less than one "
                    f"image in an epoch of {epoch_size}; raise datasets.weight or epoch_size, or remove the dataset."
                )

    def _permutation(self, n: int, *key: int) -> np.ndarray:
        return np.random.Generator(np.random.PCG64(hash_int(self.seed, *key))).permutation(n)

    def _drawn(self, dataset: int, epoch: int) -> np.ndarray:
        """Return the indices drawn from a dataset in an epoch, (count,) int64, in the order of drawing."""
        size, count = self.sizes[dataset], self.counts[dataset]
        start, stop = epoch * count, (epoch + 1) * count
        parts = []
        for number in range(start // size, (stop - 1) // size + 1):
            order = self._permutation(size, Stream.ORDER, dataset, number)
            parts.append(order[max(start - number * size, 0) : min(stop - number * size, size)])
        return np.concatenate(parts)

    def draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the dataset and the index at each position of an epoch, both (epoch_size,) int64."""
        source = np.repeat(np.arange(len(self.sizes)), self.counts)
        source = source[self._permutation(self.epoch_size, Stream.SOURCE, epoch)]
        index = np.empty(self.epoch_size, dtype=np.int64)
        for dataset in range(len(self.sizes)):
            index[source == dataset] = self._drawn(dataset, epoch)
        return source, index
