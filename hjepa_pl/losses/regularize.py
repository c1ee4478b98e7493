"""The streams of embeddings that regularisers act on."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.functional.precision import without_autocast
from hjepa_pl.losses.config import RegularizerConfig
from hjepa_pl.losses.ntxent import ntxent
from hjepa_pl.losses.sigreg import sigreg
from hjepa_pl.losses.vicreg import vicreg
from hjepa_pl.utils.distributed import gather_rows


def center_positions(tokens: Tensor, index: Tensor, patches: int) -> tuple[Tensor, Tensor]:
    """Subtract from each token the mean, over images, of the tokens at its position.

    What is left is how images differ at one position: zero for a code that depends on position only, which the
    flattened tokens of such a code would hide.

    Args:
        tokens: (B, K, D) of all ranks, float32 or float64.
        index: (B, K) positions on the grid. Of an image's tokens at one position (blocks may overlap) the first counts.
        patches: Number of positions N of the grid.

    Returns:
        The centred tokens (B * K, D), scaled so that independent tokens of variance 1 keep variance 1, and (B * K,)
        which of them count, 1 or 0: those at positions that two images or more share. The others are 0. The shapes do
        not depend on the positions, so that nothing waits for the device.
    """
    # Repeats go to a place of their own, behind the grid: a position's count is that of its images.
    flat, place = tokens.flatten(0, 1), index.masked_fill(_repeats(index), patches).flatten()
    count = flat.new_zeros(patches + 1).index_add_(0, place, torch.ones_like(flat[:, 0]))
    total = flat.new_zeros(patches + 1, flat.shape[1]).index_add(0, place, flat)
    n = count[place]
    # A lone token centres to zero, which says nothing of collapse: it does not count.
    valid = ((n > 1) & (place < patches)).to(flat.dtype)
    scale = valid * torch.sqrt(n / (n - 1).clamp(min=1))
    return (flat - total[place] / n[:, None]) * scale[:, None], valid


def _repeats(index: Tensor) -> Tensor:
    """Return which of each row's (B, K) entries the row holds before."""
    ordered, order = index.sort(dim=1, stable=True)
    again = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    return torch.zeros_like(again).scatter(1, order, again)


def regularize(
    config: RegularizerConfig, stream: Tensor, index: Tensor | None, patches: int, key: int, partial: int = 0
) -> Tensor:
    """Return one regulariser's value over the images of all ranks, unweighted, in float32.

    Args:
        config: Kind, stream and factors.
        stream: Projections (V, B, P) of all ranks, or this rank's tokens (B, K, D) with their `index` (B, K): the
            context's, or a level's predictions.
        index: Positions of the tokens; None for projections.
        patches: Number of positions of the tokens' grid.
        key: `hash_int(seed, step)`: the directions of a step.
        partial: Number of projections in front whose views saw a part of the image only.

    Returns:
        Scalar; zero where no two images have a token at one position.
    """
    with without_autocast(stream.device):
        views, valid = stream.float(), None
        if index is not None:
            rows, valid = center_positions(gather_rows(views), gather_rows(index), patches)
            views = rows[None]
        value = _value(config, views, key, partial, valid)
        return value if valid is None else value * valid.any()


def _value(config: RegularizerConfig, views: Tensor, key: int, partial: int, valid: Tensor | None) -> Tensor:
    """Return a kind's value of views (V, R, P), of whose rows those count that `valid` (R,) says."""
    options = config.options
    if config.kind == "vicreg":
        return vicreg(views, **options, partial=partial, valid=valid)
    if config.kind == "ntxent":
        return ntxent(views, **options, partial=partial)
    return torch.stack([sigreg(v, hash_int(key, Stream.SLICES), **options, valid=valid) for v in views]).mean()
