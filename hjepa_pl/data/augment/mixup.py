"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899) with one ratio per step, as in timm's batch mode."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.types import Mix

Box = tuple[float, float, float, float]
"""Top, left, bottom and right as fractions of height and width."""


def draw_mix(config: AugmentationConfig, seed: int, step: int) -> tuple[float, Box | None]:
    """Draw the ratio and box of a step, the same in all processes.

    Returns:
        The fraction of the image itself, and CutMix's box, or None for Mixup.
    """
    rng = random.Random(hash_int(seed, Stream.MIX, step))
    cut = bool(config.cutmix) and (not config.mixup or rng.random() < 0.5)
    alpha = config.cutmix if cut else config.mixup
    ratio = rng.betavariate(alpha, alpha)
    if not cut:
        return ratio, None
    # A box of the view's aspect ratio about a random center, cut off at the border, as in the paper and timm.
    half, y, x = (1 - ratio) ** 0.5 / 2, rng.random(), rng.random()
    return ratio, (max(0.0, y - half), max(0.0, x - half), min(1.0, y + half), min(1.0, x + half))


def mix_views(
    views: Sequence[Tensor], label: Tensor, config: AugmentationConfig, seed: int, step: int
) -> tuple[tuple[Tensor, ...], Mix]:
    """Mix every view of an image with the same view of its partner, all by one ratio or box.

    The partner of global position p is p XOR 1, the next or previous row, because the positions of a process are
    consecutive and start at an even one. It is independent of rank and world size.

    Args:
        views: (B, C, H, W) float32 tensors of the same images, of any sizes; B is even.
        label: (B,) int64.
        config: Augmentation with `mixup` or `cutmix`.
        seed: Seed of the run.
        step: Number of the global batch.

    Returns:
        The mixed views, and the partners' labels with the fraction of the image itself: with CutMix that of the pixels
        that the first view keeps.
    """
    ratio, box = draw_mix(config, seed, step)
    mixed = []
    for view in views:
        partner = _partner(view)
        if box is None:
            mixed.append(torch.lerp(partner, view, ratio))
            continue
        height, width = view.shape[2:]
        top, left, bottom, right = (round(s * n) for s, n in zip(box, (height, width) * 2, strict=True))
        pasted = view.clone()
        pasted[:, :, top:bottom, left:right] = partner[:, :, top:bottom, left:right]
        if not mixed:
            ratio = 1 - (bottom - top) * (right - left) / (height * width)
        mixed.append(pasted)
    ratios = torch.full((len(label),), ratio, device=label.device)
    return tuple(mixed), Mix(_partner(label), ratios)


def _partner(rows: Tensor) -> Tensor:
    """Return the other row of each row's pair."""
    return rows.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
