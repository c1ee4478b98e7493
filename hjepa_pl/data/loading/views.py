"""Augmentation of a raw batch to its views, on its device."""

import math

import torch
from torch import Tensor

from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.color import adapt_channels
from hjepa_pl.data.augment.crop_resize import clean_resize
from hjepa_pl.data.augment.mixup import mix_views
from hjepa_pl.data.augment.multicrop import ViewPlan
from hjepa_pl.data.loading.batches import RawBatch, RawGroup
from hjepa_pl.types import Counters, ViewBatch

_AT_ONCE = 2**22
"""Pixels augmented at a time, unless a single view has more: 48 MB in three channels."""


def view_batch(batch: RawBatch, plan: ViewPlan, channels: int, size: tuple[int, int] | None = None) -> ViewBatch:
    """Return the batch that the module receives: views, boxes of multi-crop, and labels of mixed images.

    Args:
        batch: B images, whole or cropped by the workers.
        plan: The views of each step.
        channels: Of the result.
        size: Height and width of the views; None is the plan's.
    """
    plan = plan if size is None else plan.with_size(size)
    views, boxes = make_views(batch, plan, channels)
    mix, mixer = None, plan.augmenters[0].views  # mixup and cutmix are the same for all sets
    if mixer.config.mixes:
        views, mix = mix_views(views, batch.label, mixer.config, mixer.seed, batch.counters.step)
    seen, local = views[: plan.views], views[plan.views :]
    return ViewBatch(seen, batch.label, batch.source, batch.counters, local, boxes, mix)


def make_views(batch: RawBatch, plan: ViewPlan, channels: int) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Make all views of a batch.

    Args:
        batch: B images, whole or cropped by the workers.
        plan: The views of each step.
        channels: Of the result.

    Returns:
        For each view of the plan at the batch's step a normalized tensor (B, C, *size), float32; and their boxes
        (views, B, 4) as in `ViewBatch`, None without multi-crop.
    """
    step = batch.counters.step
    boxed = plan.multicrop is not None
    parts = [_of_group(g, plan.at(step, g.pair), batch.counters, channels, boxed) for g in batch.groups]
    views = tuple(_whole(batch, [p[0][i] for p in parts]) for i in range(len(plan.at(step))))
    if not boxed:
        return views, None
    # `_whole` needs the images in the first dimension.
    return views, _whole(batch, [torch.stack(p[1], 1) for p in parts]).transpose(0, 1).contiguous()


def _of_group(
    group: RawGroup, crops: list[tuple[Augmenter, int]], counters: Counters, channels: int, boxed: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the views of a group and, if `boxed`, the boxes of each view, (n, 4)."""
    counters = counters._replace(position=counters.position[group.rows])
    views, boxes = list[Tensor](), list[Tensor]()
    for augmenter, numbers in _together(crops, group):
        if group.boxes is not None:
            cut = group.images[len(views) : len(views) + len(numbers)]
            images = clean_resize(_floats(torch.cat(cut), channels), augmenter.img_size)
            made = augmenter.finish(images, counters, numbers)
        else:
            images = _floats(group.images[0], channels)
            made, crop = augmenter.views(images, counters, numbers)
            if boxed:
                boxes += crop.relative(*images.shape[2:]).chunk(len(numbers))
        views += made.chunk(len(numbers))
    return views, boxes if group.boxes is None else list(group.boxes)


def _together(crops: list[tuple[Augmenter, int]], group: RawGroup) -> list[tuple[Augmenter, list[int]]]:
    """Group the views that one call makes: consecutive ones of one size, up to `_AT_ONCE` pixels.

    A call launches the same number of kernels for any number of views, and small kernels leave an accelerator idle.
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
    """Return the rows of all groups in the order of the batch."""
    if len(parts) == 1:  # its rows are the whole batch, in order
        return parts[0]
    whole = parts[0].new_empty(len(batch.label), *parts[0].shape[1:])
    for group, part in zip(batch.groups, parts, strict=True):
        whole[group.rows] = part
    return whole
