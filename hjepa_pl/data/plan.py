"""How long an epoch is, and what it draws, from the settings and the sizes of the sets."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from hjepa_pl.data.loader import usable_size
from hjepa_pl.data.mixture import EpochPlan, mixture_weights
from hjepa_pl.data.shards import ShardImages, known_sizes
from hjepa_pl.data.storage import Images


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
