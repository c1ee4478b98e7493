"""Registry of the regularizers, and their value on a stream of embeddings."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.functional.precision import without_autocast
from hjepa_pl.losses.base import Regularizer
from hjepa_pl.losses.ntxent import NTXent
from hjepa_pl.losses.sigreg import SIGReg
from hjepa_pl.losses.vicreg import VICReg
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.distributed import gather_rows
from hjepa_pl.utils.registry import Registry
from hjepa_pl.utils.wording import as_typed

REGULARIZERS: Registry[type[Regularizer]] = Registry(
    "regularizers.kind", {"sigreg": SIGReg, "vicreg": VICReg, "ntxent": NTXent}
)


def read_regularizer(value: Any) -> Regularizer:
    """Return a regularizer from a mapping of its `kind` and its other keys; one that is made already as it is.

    Raises:
        ConfigError: If the kind does not exist, or does not accept the keys.
    """
    if isinstance(value, Regularizer):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"invalid `regularizers={as_typed(value)}`: must be a mapping; write {{kind: NAME}}.")
    keys = {str(k): v for k, v in value.items()}
    if "kind" not in keys:
        raise ConfigError("regularizers lacks the key 'kind'.")
    kind = keys.pop("kind")
    make = REGULARIZERS.find(kind)
    if not (isinstance(make, type) and issubclass(make, Regularizer)):
        raise ConfigError(f"invalid `regularizers.kind={kind}`: must be a subclass of hjepa_pl.losses.Regularizer.")
    if "__bounds__" not in vars(make):
        raise ConfigError(
            f"invalid `regularizers.kind={kind}`: must be decorated by @settings of hjepa_pl.utils.settings."
        )
    _check_keys(kind, make, keys)
    return make(**keys)


def _check_keys(kind: str, make: type[Regularizer], keys: Mapping[str, Any]) -> None:
    """Reject keys of another kind, and misspelled keys."""
    own = {f.name for f in fields(make)}
    known = {f.name for part in REGULARIZERS.values() for f in fields(part)}
    for key in sorted(keys.keys() - own):
        if key in known:
            raise ConfigError(
                f"invalid `regularizers.{key}={as_typed(keys[key])}`: has no effect with regularizers.kind={kind}; "
                "remove it."
            )
        if near := difflib.get_close_matches(key, own, 1):
            raise ConfigError(f"regularizers does not accept '{key}'; did you mean {near[0]}?")


def regularize(
    term: Regularizer, stream: Tensor, index: Tensor | None, patches: int, key: int, partial: int = 0
) -> Tensor:
    """Return a regularizer's value over the images of all ranks, without its weight, in float32.

    Args:
        term: The regularizer.
        stream: Projections (V, B, D) of all ranks, or tokens (B, K, D) of this rank with their `index` (B, K): the
            context's, or a level's predictions.
        index: Positions of the tokens on the grid; None for projections.
        patches: Number of positions of the grid.
        key: `hash_int(seed, step)`, the counter of the step's random draws.
        partial: Number of leading projections of views that show a part of the image only.

    Returns:
        Scalar; zero where no two images have a token at one position.
    """
    with without_autocast(stream.device):
        if index is None:
            return term(stream.float(), partial=partial, key=key)
        rows, valid = center_positions(gather_rows(stream.float()), gather_rows(index), patches)
        return term(rows[None], partial=partial, valid=valid, key=key) * valid.any()


def center_positions(tokens: Tensor, index: Tensor, patches: int) -> tuple[Tensor, Tensor]:
    """Subtract from each token the mean, over images, of the tokens at its position.

    The result is how images differ at one position: zero for tokens that depend on their position only. Flattened
    tokens hide such a collapse.

    Args:
        tokens: (B, K, D) of all ranks, float32 or float64.
        index: (B, K) positions on the grid. Of an image's tokens at one position (blocks may overlap) the first counts.
        patches: Number of positions N of the grid.

    Returns:
        The centered tokens (B * K, D), scaled so that independent tokens of variance 1 keep variance 1, and (B * K,)
        which of them count, 1 or 0: those at positions that two images or more share. The others are 0. The shapes do
        not depend on the positions, so that the host need not wait for the device.
    """
    # Repeats get an extra position after the grid: a position's count is its number of images.
    flat, position = tokens.flatten(0, 1), index.masked_fill(_repeats(index), patches).flatten()
    count = flat.new_zeros(patches + 1).index_add_(0, position, torch.ones_like(flat[:, 0]))
    total = flat.new_zeros(patches + 1, flat.shape[1]).index_add(0, position, flat)
    n = count[position]
    # The only token of a position is centered to zero, which is no sign of collapse: it does not count.
    valid = ((n > 1) & (position < patches)).to(flat.dtype)
    scale = valid * torch.sqrt(n / (n - 1).clamp(min=1))
    return (flat - total[position] / n[:, None]) * scale[:, None], valid


def _repeats(index: Tensor) -> Tensor:
    """Return (B, K) bool: the entries that occur earlier in their row."""
    ordered, order = index.sort(dim=1, stable=True)
    again = F.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    return torch.zeros_like(again).scatter(1, order, again)
