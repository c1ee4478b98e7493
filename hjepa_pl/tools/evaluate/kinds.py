"""Kinds of features: which blocks of a network are read, and how they are pooled."""

import re
from typing import NamedTuple

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import invalid


class Kind(NamedTuple):
    """Features of an image."""

    name: str
    """As typed: `last.mean`, `last4.cls`, `6.mean` or `pooled`."""
    blocks: tuple[int, ...]
    """Blocks whose outputs are pooled and set side by side, counted from the last as -1; empty for `pooled`."""
    pool: str
    """`mean` of the patch tokens, `cls` token, or `pooled` as the model does."""


def read_kind(name: str, depth: int) -> Kind:
    """Return the kind of a name.

    Args:
        name: As typed.
        depth: Blocks of the network; 0 if it has none, as a convolutional one.

    Raises:
        ConfigError: If there is no such kind, or no such block.

    Example:
        >>> read_kind("last2.mean", depth=12).blocks
        (-2, -1)
        >>> read_kind("6.mean", depth=12).blocks
        (-7,)
    """
    if name == "pooled":
        return Kind(name, (), "pooled")
    found = re.fullmatch(r"(last(\d*)|\d+)\.(mean|cls)", name)
    if found is None:
        raise invalid("eval.features", name, "must be like last.mean, last4.mean, 6.mean, last.cls or pooled.")
    if not depth:
        raise invalid("eval.features", name, "the model has no blocks of tokens; use pooled.")
    count = int(found[2] or 1) if found[1].startswith("last") else None
    if count == 0 or (count or 0) > depth or (count is None and not 1 <= int(found[1]) <= depth):
        raise ConfigError(f"invalid `eval.features={name}`: the encoder has blocks 1 to {depth}.")
    blocks = (int(found[1]) - depth - 1,) if count is None else tuple(range(-count, 0))
    return Kind(name, blocks, found[3])
