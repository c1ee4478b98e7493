"""Images and maps on the grid of patches: views, what a mask leaves, PCA of patch tokens."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hjepa_pl.evaluation.pictures.sheet import Tile
from hjepa_pl.evaluation.threads import one_thread

_HIDDEN = 0.85
"""Share of white in what is hidden."""
_STRIPES = 8
"""Pixels from one diagonal stripe over what is hidden to the next: a white stroke of a digit looks hidden without."""


def pixels(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> list[Tile]:
    """Return normalized images (B, 1 or 3 or more, H, W) as tiles; of more than three channels the first three.

    Args:
        images: The images.
        mean: Of each channel; None stretches each image from its smallest to its largest value.
        std: Of each channel.
    """
    x = images.detach().float().cpu()
    if mean is None or std is None:
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        x = (x - low) / (high - low).clamp_min(1e-8)
    else:
        x = x * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    x = x[:, :3] if x.shape[1] >= 3 else x[:, :1].expand(-1, 3, -1, -1)
    eight = (x.nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)
    return list(eight.permute(0, 2, 3, 1).numpy())


def kept_cells(tiles: Sequence[Tile], cells: Tensor, grid: tuple[int, int]) -> list[Tile]:
    """Return images of which only some cells are shown; the others fade, under diagonal stripes.

    Args:
        tiles: B images, as large as they are shown.
        cells: (B, K) indices of the cells that stay.
        grid: Rows and columns of cells.
    """
    shown = torch.zeros(len(tiles), grid[0] * grid[1], dtype=torch.bool)
    shown.scatter_(1, cells.cpu(), True)
    found = []
    for tile, mask in zip(tiles, shown.unflatten(1, grid).numpy(), strict=True):
        height, width = tile.shape[:2]
        rows = np.arange(height) * grid[0] // height
        columns = np.arange(width) * grid[1] // width
        visible = mask[rows][:, columns, None]
        faded = (tile * (1 - _HIDDEN) + 255 * _HIDDEN).astype(np.uint8)
        striped = (np.arange(height)[:, None] + np.arange(width)) % _STRIPES < 1
        faded[striped] = 150
        found.append(np.where(visible, tile, faded))
    return found


def pca_maps(tokens: Tensor) -> Tensor:
    """Return the first three principal components of patch tokens, for red, green and blue.

    The components are of all images together. A component's sign is such that its scores have a tail to the right
    (positive third moment), and its scale maps the middle 98 % of its scores to [0, 1]: functions of the tokens alone.

    Args:
        tokens: (B, N, D), N * B at least 4.

    Returns:
        (B, N, 3) in [0, 1]; 0.5 for a component without variance.

    Example:
        >>> pca_maps(torch.randn(2, 16, 8)).shape
        torch.Size([2, 16, 3])
    """
    x = tokens.detach().to("cpu", torch.float64).flatten(0, 1)
    x = x - x.mean(dim=0)
    with one_thread():
        values, vectors = torch.linalg.eigh(x.T @ x)
    count = min(3, x.shape[1])
    scores = x @ vectors[:, -count:].flip(1)
    scores = scores * torch.where(scores.pow(3).sum(0) < 0, -1.0, 1.0)
    low, high = (torch.quantile(scores[:: max(1, len(scores) // 20_000)], q, dim=0) for q in (0.01, 0.99))
    scaled = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    power = values[-count:].flip(0)
    scaled = torch.where(power > 1e-10 * values.sum().clamp_min(1e-300), scaled, 0.5)
    full = torch.full((len(x), 3), 0.5, dtype=torch.float64)
    full[:, :count] = scaled
    return full.float().unflatten(0, tokens.shape[:2])
