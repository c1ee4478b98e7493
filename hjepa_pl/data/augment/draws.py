"""The random numbers of some views of some images, all drawn at once."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from hjepa_pl.functional.counters import Stream, uniform_at

_STREAMS, _NUMBERS = 2**8, 2**12
"""More than there are streams, and numbers of a stream for one view of an image."""


class Draws:
    """Uniform numbers of V views of n images: a function of key, position, view and stream.

    They are the same whichever other views, images and streams are drawn with them. One draw for all is one pass of the
    hash: stream by stream, most of what augmentation launches on a device would be hashing.

    Args:
        key: `hash_int(seed, epoch, Stream.VIEW)`.
        position: (n,) int64 counters of the images.
        views: Numbers of the views.
        counts: How many numbers each stream gives for a view of an image.
    """

    def __init__(self, key: int, position: Tensor, views: Sequence[int], counts: dict[Stream, int]) -> None:
        self._drawn: dict[Stream, Tensor] = {}
        if not counts:
            return
        columns = _columns(tuple(views), tuple(counts.items()), position.device)
        drawn = uniform_at(key, position, columns).view(len(views), -1, len(position))
        self._drawn = dict(zip(counts, drawn.split(list(counts.values()), dim=1), strict=True))

    def __getitem__(self, stream: Stream) -> Tensor:
        """Return a stream's numbers, (V * n, count) float32 in [0, 1), view after view."""
        return self._drawn[stream].transpose(1, 2).flatten(0, 1)


@cache
def _columns(views: tuple[int, ...], counts: tuple[tuple[Stream, int], ...], device: torch.device) -> Tensor:
    """Return the column of each number of each view, (total,) int64; made once, as `constant`'s are."""
    places = [
        (view * _STREAMS + stream) * _NUMBERS + i for view in views for stream, count in counts for i in range(count)
    ]
    with torch.inference_mode(False):
        return torch.tensor(places, device=device)
