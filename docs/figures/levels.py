"""Draw docs/figures/levels.png: what the context encoder sees of a photograph, and what each level predicts.

The masks are drawn by the package itself: `uv run --with matplotlib python docs/figures/levels.py`.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_sample_image

from hjepa_pl.masks import MaskConfig, build_masks
from hjepa_pl.types import Counters

GRID, PATCH, CELLS = 14, 16, (1, 2)
STEP, IMAGE = 1, 4  # which of the masks to show
HIDDEN = 0.93  # gray level of what the context encoder does not see
COLORS = ("#d1495b", "#00798c")


def photograph() -> np.ndarray:
    """Return scikit-learn's photograph of a flower, (224, 224, 3) in [0, 1]."""
    image = torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1)[None].float()
    square = image[:, :, :400, 120:520]
    small = torch.nn.functional.interpolate(square, GRID * PATCH, mode="bicubic", antialias=True)
    return (small[0].permute(1, 2, 0) / 255).clamp(0, 1).numpy()


def paste(canvas: np.ndarray, image: np.ndarray, cells: list[int], cell: int) -> None:
    """Copy the pixels of cells of `cell` x `cell` patches from an image to a canvas."""
    side, columns = cell * PATCH, GRID // cell
    for row, column in (divmod(c, columns) for c in cells):
        at = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
        canvas[at] = image[at]


def outline(axis: plt.Axes, cells: list[int], cell: int, color: str) -> None:
    """Draw a frame around each cell."""
    side, columns = cell * PATCH, GRID // cell
    for row, column in (divmod(c, columns) for c in cells):
        axis.add_patch(plt.Rectangle((column * side, row * side), side, side, fill=False, ec=color, lw=1.2))


def main() -> None:
    """Draw and save."""
    image = photograph()
    masks = build_masks(MaskConfig(), (GRID, GRID), CELLS, seed=0)(Counters(0, STEP, torch.tensor([IMAGE])))
    context = masks.context[0].tolist()
    targets = [sorted(set(t[0].flatten().tolist())) for t in masks.targets]
    figure, axes = plt.subplots(1, 5, figsize=(12.5, 2.9), constrained_layout=True)
    titles = [
        "a view",
        f"context: {len(context)} of {GRID * GRID} patches",
        f"level 0: {len(targets[0])} patches",
        f"level 1: {len(targets[1])} cells of 2 x 2 patches",
        "level 2: the image, in two views",
    ]
    seen = np.full_like(image, HIDDEN)
    paste(seen, image, context, 1)
    shown = [image, seen]
    for level, cell in enumerate(CELLS):
        canvas = np.full_like(image, HIDDEN)
        paste(canvas, image, targets[level], cell)
        shown.append(canvas)
    second = np.flip(image[24:184, 40:200], axis=1)
    both = np.ones((GRID * PATCH, GRID * PATCH, 3))
    both[: 7 * PATCH, : 7 * PATCH] = image[::2, ::2]
    both[7 * PATCH :, 7 * PATCH :] = second[np.ix_(*(np.linspace(0, 159, 7 * PATCH).astype(int),) * 2)]
    shown.append(both)
    for axis, title, picture in zip(axes, titles, shown, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    for level, cell in enumerate(CELLS):
        outline(axes[2 + level], targets[level], cell, COLORS[level])
    figure.savefig(Path(__file__).with_name("levels.png"), dpi=110)


if __name__ == "__main__":
    main()
