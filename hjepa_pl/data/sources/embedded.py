"""Datasets that need no files: scikit-learn's digits, and stripes for tests."""

import numpy as np
import torch
from torch.nn import functional as F

from hjepa_pl.data.sources.images import ArrayImages, check_split
from hjepa_pl.functional.counters import Stream, hash_int, normal, uniform
from hjepa_pl.functional.stratify import stratified


def digits(root: str, split: str) -> ArrayImages:
    """Load scikit-learn's 1,797 scanned digits, (N, 1, 8, 8); a fixed fifth of every class is the test split."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]

    check_split("digits", split, ("train", "test"))
    data = load_digits()
    images = torch.from_numpy(np.rint(data.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(data.target.astype(np.int64))
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[stratified(labels, round(len(labels) / 5), seed=0)] = True
    chosen = test if split == "test" else ~test
    return ArrayImages(images[chosen], labels[chosen], [str(i) for i in range(10)])


def digits_canvas(root: str, split: str) -> ArrayImages:
    """Load the digits, each rotated by up to 40 degrees and shifted on a canvas, (N, 1, 16, 16)."""
    plain = digits(root, split)
    u = uniform(hash_int(0, Stream.AFFINE, split == "test"), torch.arange(len(plain)), 3) * 2 - 1
    angle = u[:, 0] * (40 * torch.pi / 180)
    shift = u[:, 1:] * 3.0
    # The canvas is twice as wide as the digit: its coordinates -1..1 are the digit's -2..2.
    cos, sin = torch.cos(angle), torch.sin(angle)
    offset = torch.stack([cos * shift[:, 0] - sin * shift[:, 1], sin * shift[:, 0] + cos * shift[:, 1]], 1) / 4.0
    theta = torch.stack([2 * cos, -2 * sin, -offset[:, 0], 2 * sin, 2 * cos, -offset[:, 1]], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(plain), 1, 16, 16], align_corners=False)
    images = F.grid_sample(plain.images.float(), grid, align_corners=False)
    return ArrayImages(images.add_(0.5).to(torch.uint8), plain.labels, plain.classes)


def fake(root: str, split: str) -> ArrayImages:
    """Make 256 images, (256, 3, 32, 32), of four classes that differ in color and direction of their stripes."""
    check_split("fake", split, ("train", "test"))
    labels = torch.arange(256) % 4
    key = hash_int(0, Stream.ORDER, split == "test")
    phase = uniform(key, torch.arange(256), 1)[:, :, None] * 2 * torch.pi
    line = torch.arange(32) * (2 * torch.pi / 8)
    rows = line[None, :, None] * (labels % 2)[:, None, None]
    columns = line[None, None, :] * (1 - labels % 2)[:, None, None]
    stripes = torch.sin(rows + columns + phase)[:, None]
    tint = torch.tensor([[1.0, 0.5, 0.2], [1.0, 0.5, 0.2], [0.2, 0.5, 1.0], [0.2, 0.5, 1.0]])[labels][:, :, None, None]
    noise = normal(hash_int(key), (256, 3, 32, 32), torch.device("cpu"))
    images = (128 + 60 * stripes * tint + 20 * noise).clamp_(0, 255)
    return ArrayImages(images.to(torch.uint8), labels, ["a", "b", "c", "d"])
