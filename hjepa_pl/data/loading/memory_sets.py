"""The rows of a batch whose images are in memory, on the host or on the GPU."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hjepa_pl.data.loading.batches import Draw, RawGroup
from hjepa_pl.data.sources.images import Images, is_in_memory

_MAX_FRACTION = 1 / 20
"""Largest fraction of a GPU's memory that images may take."""


class MemorySets:
    """Gathers labels and images of the sets that are in memory.

    Args:
        sets: All datasets of the mixture; those that are not in memory are skipped.
        pairs: For each dataset, the index of its augmenters (`ViewPlan.dataset_augmenters`); empty for the first.
        device: Where to keep the images; the host by default.
    """

    def __init__(self, sets: Sequence[Images], pairs: Sequence[int] = (), device: torch.device | None = None) -> None:
        self._sets = {
            i: images if device is None else images.on(device) for i, images in enumerate(sets) if is_in_memory(images)
        }
        self._groups: dict[tuple[int, ...], list[int]] = {}
        """Sets of one image shape and pair of augmenters: they are gathered as one group."""
        for i, images in self._sets.items():
            self._groups.setdefault((pairs[i] if pairs else 0, *images.images.shape[1:]), []).append(i)

    def labels(self, draw: Draw) -> Tensor:
        """Return the labels of a draw, (B,) int64; -1 for rows that are not in memory."""
        labels = torch.full_like(draw.source, -1)
        for i, images in self._sets.items():
            rows = draw.source == i
            labels[rows] = images.labels[draw.indices[rows]]
        return labels

    def groups(self, draw: Draw) -> tuple[RawGroup, ...]:
        """Return the images of a draw, one group per image shape and pair of augmenters, on their device."""
        groups = [self._group(draw, members, key[0]) for key, members in self._groups.items()]
        return tuple(group for group in groups if group is not None)

    def _group(self, draw: Draw, members: list[int], pair: int) -> RawGroup | None:
        parts, rows = [], []
        for i in members:
            images, own = self._sets[i].images, torch.nonzero(draw.source == i)[:, 0]
            if len(own):
                parts.append(images[draw.indices[own].to(images.device, non_blocking=True)])
                rows.append(own)
        if not parts:
            return None
        # In the order of the batch, so that a single group needs no scattering on the device.
        order = torch.argsort(torch.cat(rows))
        whole = torch.cat(parts)
        gathered = whole if len(parts) == 1 else whole[order.to(whole.device, non_blocking=True)]
        return RawGroup(torch.cat(rows)[order], (gathered,), None, pair)


def memory_device(sets: Sequence[Images], device: torch.device) -> torch.device | None:
    """Return `device` if it is a GPU with room for all images in memory, None to keep them on the host."""
    if device.type != "cuda":
        return None
    size = sum(images.images.nbytes for images in sets if is_in_memory(images))
    return device if size <= _MAX_FRACTION * torch.cuda.get_device_properties(device).total_memory else None
