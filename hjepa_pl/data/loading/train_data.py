"""The training data of a run: the loaded mixture, and what an epoch draws from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from hjepa_pl.data.augment.multicrop import ViewPlan
from hjepa_pl.data.loading.mixture import EpochPlan, mixture_weights
from hjepa_pl.data.sources.images import Images
from hjepa_pl.data.sources.shards import is_streamed
from hjepa_pl.types import ConfigError


@dataclass(frozen=True)
class TrainData:
    """A mixture to draw from."""

    sets: Sequence[Images]
    names: list[str]
    """Of the sets, for logs and messages."""
    plan: EpochPlan
    """Of whole global batches."""
    views: ViewPlan
    channels: int
    """Of the views."""

    def fractions(self, epoch: int) -> dict[str, float]:
        """Return the fraction of an epoch's images that comes from each set, by name."""
        counts = torch.bincount(torch.from_numpy(self.plan.draw(epoch)[0]), minlength=len(self.sets)).tolist()
        return {name: c / self.plan.epoch_size for name, c in zip(self.names, counts, strict=True)}


def usable_size(epoch_size: int, batch_size: int, world_size: int) -> int:
    """Return the number of images in the whole global batches of an epoch.

    Args:
        epoch_size: Images of an epoch.
        batch_size: Images per process.
        world_size: Number of processes.

    Raises:
        ConfigError: If it is less than one batch.
    """
    whole = batch_size * world_size
    if epoch_size < whole:
        raise ConfigError(
            f"invalid `data.batch_size={batch_size}`: x {world_size} process(es) is more than the {epoch_size} images "
            f"of an epoch; lower it to at most {epoch_size // world_size}, or set epoch_size."
        )
    return epoch_size // whole * whole


def plan_epoch(
    sets: Sequence[Images],
    weights: Sequence[float],
    *,
    sampling: str,
    temperature: float | None,
    epoch_size: int | None,
    batch_size: int,
    world_size: int,
    seed: int,
) -> EpochPlan:
    """Return the plan of an epoch of whole global batches.

    Args:
        sets: The loaded datasets.
        weights: Of the datasets.
        sampling: See `mixture_weights`.
        temperature: See `mixture_weights`.
        epoch_size: Images of an epoch; None is the sum of the sets' sizes.
        batch_size: Images per process.
        world_size: Number of processes.
        seed: Of the order.
    """
    _check_sizes(sets, epoch_size, sampling)
    sizes = [len(s) for s in sets]
    fractions = mixture_weights(sampling, weights, sizes, temperature)
    requested = epoch_size or sum(sizes)
    total = usable_size(requested, batch_size, world_size)
    if epoch_size and total != requested:
        rank_zero_info(f"epoch_size {requested} is rounded down to {total}, whole batches over all processes.")
    # The indices of a stream are not used: as many as there are positions are enough.
    sizes = [min(n, total) if s.streamed else n for n, s in zip(sizes, sets, strict=True)]
    return EpochPlan(sizes, fractions, total, seed)


def _check_sizes(sets: Sequence[Images], epoch_size: int | None, sampling: str) -> None:
    """Reject streams of unknown size where the size is needed."""
    unknown = any(is_streamed(s) and s.samples is None for s in sets)
    if unknown and (not epoch_size or sampling == "concat"):
        needed = "with sampling=concat" if epoch_size else "without epoch_size"
        raise ConfigError(
            f"invalid `datasets.samples=null`: must be the number of images in all shards {needed}, as not all shards "
            f"are local files{'' if epoch_size else '; set it, or epoch_size'} (dataset webdataset)."
        )
