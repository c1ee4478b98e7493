"""Random numbers of several views of several images, drawn at once."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from hjepa_pl.functional.counters import uniform_at

_STREAMS, _NUMBERS = 2**8, 2**12
"""Limits of the streams, and of the numbers of a stream that a view of an image takes."""


class Draws:
    """Uniform numbers of V views of n images: a function of key, position, view and stream.

    A number does not depend on which other views, images and streams are drawn with it. All are drawn by one call of
    the hash: one call per stream would make up most of the kernel launches of augmentation.

    Args:
        key: `hash_int(seed, epoch, Stream.VIEW)`.
        position: (n,) int64 counters of the images.
        views: Indices of the views.
        counts: Streams, and how many numbers of each a view of an image takes.
    """

    def __init__(self, key: int, position: Tensor, views: Sequence[int], counts: dict[int, int]) -> None:
        self._drawn: dict[int, Tensor] = {}
        if not counts:
            return
        columns = _columns(tuple(views), tuple(counts.items()), position.device)
        drawn = uniform_at(key, position, columns).view(len(views), -1, len(position))
        self._drawn = dict(zip(counts, drawn.split(list(counts.values()), dim=1), strict=True))

    def __getitem__(self, stream: int) -> Tensor:
        """Return a stream's numbers, (V * n, count) float32 in [0, 1), view after view."""
        return self._drawn[stream].transpose(1, 2).flatten(0, 1)


@cache
def _columns(views: tuple[int, ...], counts: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Return the column of each number of each view, (total,) int64; cached like `constant`."""
    columns = [
        (view * _STREAMS + stream) * _NUMBERS + i for view in views for stream, count in counts for i in range(count)
    ]
    with torch.inference_mode(False):
        return torch.tensor(columns, device=device)
