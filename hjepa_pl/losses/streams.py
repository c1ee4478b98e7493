"""The streams of embeddings that regularisers act on."""

import torch
from torch import Tensor

from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.distributed import gather_rows
from hjepa_pl.losses.settings import RegularizerConfig
from hjepa_pl.losses.sigreg import sigreg
from hjepa_pl.losses.vicreg import vicreg


def center_positions(tokens: Tensor, index: Tensor, patches: int) -> Tensor:
    """Subtract from each token the mean, over images, of the tokens at its position.

    What is left is how images differ at one position: zero for a code that depends on position only, which the
    flattened tokens of such a code would hide.

    Args:
        tokens: (B, K, D) of all ranks, float32.
        index: (B, K) positions on the grid.
        patches: Number of positions N.

    Returns:
        (R, D): the centred tokens at positions that two images or more share, scaled so that independent tokens of
        variance 1 keep variance 1.
    """
    flat, place = tokens.flatten(0, 1), index.flatten()
    count = torch.zeros(patches, device=tokens.device).index_add_(0, place, torch.ones_like(place, dtype=torch.float))
    total = torch.zeros(patches, tokens.shape[-1], device=tokens.device).index_add(0, place, flat)
    n = count[place, None]
    centred = (flat - total[place] / n) * torch.sqrt(n / (n - 1).clamp(min=1))
    # A lone token centres to zero, which says nothing of collapse: it is left out.
    return centred[count[place] > 1]


def regularize(config: RegularizerConfig, stream: Tensor, index: Tensor | None, patches: int, key: int) -> Tensor:
    """Return one regulariser's value over the images of all ranks, unweighted, in float32.

    Args:
        config: Kind, stream and factors.
        stream: Projections (V, B, P) of all ranks, or this rank's tokens (B, K, D) with their `index` (B, K).
        index: Positions of the tokens; None for projections.
        patches: Number of positions of the grid.
        key: `hash_int(seed, step)`: the directions of a step.
    """
    with torch.autocast(stream.device.type, enabled=False):
        if index is None:
            views = stream.float()
        else:
            views = center_positions(gather_rows(stream.float()), gather_rows(index), patches)[None]
        if config.kind == "vicreg":
            factors = {k: getattr(config, k) for k in ("invariance", "variance", "covariance")}
            return vicreg(views, **{k: v for k, v in factors.items() if v is not None})
        options = {k: v for k in ("num_slices", "knots") if (v := getattr(config, k)) is not None}
        return torch.stack([sigreg(v, hash_int(key, Stream.SLICES), **options) for v in views]).mean()
