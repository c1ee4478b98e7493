"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899) of whole batches, one share a step, as timm's batch mode."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.types import Mix

Box = tuple[float, float, float, float]
"""Top, left, bottom and right as shares of the sides."""


def draw_mix(config: AugmentationConfig, seed: int, step: int) -> tuple[float, Box | None]:
    """Draw what all processes do in a step.

    Returns:
        The share of the image itself, and CutMix's box, or None for Mixup.
    """
    rng = random.Random(hash_int(seed, Stream.MIX, step))
    cut = bool(config.cutmix) and (not config.mixup or rng.random() < 0.5)
    alpha = config.cutmix if cut else config.mixup
    share = rng.betavariate(alpha, alpha)
    if not cut:
        return share, None
    # A box of the view's own aspect about a centre anywhere; what lies outside is cut off (the paper's, and timm's).
    half, y, x = (1 - share) ** 0.5 / 2, rng.random(), rng.random()
    return share, (max(0.0, y - half), max(0.0, x - half), min(1.0, y + half), min(1.0, x + half))


def mix_views(
    views: Sequence[Tensor], label: Tensor, config: AugmentationConfig, seed: int, step: int
) -> tuple[tuple[Tensor, ...], Mix]:
    """Mix every view of an image with the same view of its partner, all by one share or box.

    The partner of global position p is p XOR 1: the next row or the one before, because a process's positions are
    consecutive and start at an even one. So it hangs neither on the rank nor on the number of processes.

    Args:
        views: (B, C, H, W) float32 tensors of the same images, of any sizes; B is even.
        label: (B,) int64.
        config: With `mixup` or `cutmix`.
        seed: Of the run.
        step: Number of the global batch.

    Returns:
        The mixed views, and whose label has which share: with CutMix that of the pixels that the first view keeps.
    """
    share, box = draw_mix(config, seed, step)
    mixed = []
    for view in views:
        partner = _partner(view)
        if box is None:
            mixed.append(torch.lerp(partner, view, share))
            continue
        height, width = view.shape[2:]
        top, left, bottom, right = (round(s * n) for s, n in zip(box, (height, width) * 2, strict=True))
        pasted = view.clone()
        pasted[:, :, top:bottom, left:right] = partner[:, :, top:bottom, left:right]
        if not mixed:
            share = 1 - (bottom - top) * (right - left) / (height * width)
        mixed.append(pasted)
    shares = torch.full((len(label),), share, device=label.device)
    return tuple(mixed), Mix(_partner(label), shares)


def _partner(rows: Tensor) -> Tensor:
    """Return each row's neighbour in its pair."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
