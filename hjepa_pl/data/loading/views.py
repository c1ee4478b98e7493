"""The views of a raw batch, made on the device that it is on."""

import math

import torch
from torch import Tensor

from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.color import adapt_channels
from hjepa_pl.data.augment.mixup import mix_views
from hjepa_pl.data.augment.multicrop import ViewPlan
from hjepa_pl.data.loading.batches import RawBatch, RawGroup
from hjepa_pl.types import Counters, ViewBatch

_AT_ONCE = 2**22
"""Most pixels that are augmented at a time, unless a single view has more: 48 MB in three channels."""


def view_batch(batch: RawBatch, plan: ViewPlan, channels: int) -> ViewBatch:
    """Make what the module receives of a batch: its views, and where they are mixed, with what."""
    views, boxes = make_views(batch, plan, channels)
    mix, mixer = None, plan.augmenters[0].views  # mixup and cutmix are those of all datasets
    if mixer.config.mixes:
        views, mix = mix_views(views, batch.label, mixer.config, mixer.seed, batch.counters.step)
    seen, local = views[: plan.views], views[plan.views :]
    return ViewBatch(seen, batch.label, batch.source, batch.counters, local, boxes, mix)


def make_views(batch: RawBatch, plan: ViewPlan, channels: int) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Make all views of a batch.

    Args:
        batch: B images, whole or cropped by the workers.
        plan: Which views its step has.
        channels: Of the result.

    Returns:
        One (B, C, *size) float32, normalised, for each entry of the plan at the batch's step, and their boxes
        (views, B, 4) as in `ViewBatch`, None without multi-crop.
    """
    step = batch.counters.step
    boxed = plan.multicrop is not None
    parts = [_of_group(g, plan.at(step, g.way), batch.counters, channels, boxed) for g in batch.groups]
    views = tuple(_whole(batch, [p[0][i] for p in parts]) for i in range(len(plan.at(step))))
    if not boxed:
        return views, None
    # The dimension of the images first, for `_whole`, and back.
    return views, _whole(batch, [torch.stack(p[1], 1) for p in parts]).transpose(0, 1).contiguous()


def _of_group(
    group: RawGroup, crops: list[tuple[Augmenter, int]], counters: Counters, channels: int, boxed: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the views of the images of one group, and where `boxed` the box of each, (n, 4)."""
    counters = counters._replace(position=counters.position[group.rows])
    views, boxes = list[Tensor](), list[Tensor]()
    for augmenter, numbers in _together(crops, group):
        if group.boxes is not None:
            cut = group.images[len(views) : len(views) + len(numbers)]
            made = augmenter.finish(_floats(torch.cat(cut), channels), counters, numbers)
        else:
            images = _floats(group.images[0], channels)
            made, crop = augmenter.views(images, counters, numbers)
            if boxed:
                boxes += crop.relative(*images.shape[2:]).chunk(len(numbers))
        views += made.chunk(len(numbers))
    return views, boxes if group.boxes is None else list(group.boxes)


def _together(crops: list[tuple[Augmenter, int]], group: RawGroup) -> list[tuple[Augmenter, list[int]]]:
    """Return the numbers of the views that one call makes: those of one size, as many as `_AT_ONCE` allows.

    What a call launches does not hang on how many views it makes, and small ones leave an accelerator waiting for that.
    """
    whole = group.images[0].shape[2:].numel() if group.boxes is None else 0
    parts = list[tuple[Augmenter, list[int]]]()
    for augmenter, v in crops:
        pixels = len(group.rows) * max(math.prod(augmenter.img_size), whole)
        if parts and parts[-1][0] is augmenter and (len(parts[-1][1]) + 1) * pixels <= _AT_ONCE:
            parts[-1][1].append(v)
        else:
            parts.append((augmenter, [v]))
    return parts


def _floats(raw: Tensor, channels: int) -> Tensor:
    return adapt_channels(raw, channels).float().div_(255)


def _whole(batch: RawBatch, parts: list[Tensor]) -> Tensor:
    """Put the rows of the groups in the order of the batch."""
    if len(parts) == 1:  # its rows are the whole batch, in order
        return parts[0]
    whole = parts[0].new_empty(len(batch.label), *parts[0].shape[1:])
    for group, part in zip(batch.groups, parts, strict=True):
        whole[group.rows] = part
    return whole
