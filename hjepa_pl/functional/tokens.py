"""Tokens on a grid: gathering by index, pooling into cells, sine-cosine positions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens by index.

    Args:
        tokens: (B, N, D).
        index: (B, K) int64, or (M * B, K) for M selections of each row: one of all rows, then the next of all.

    Returns:
        (B, K, D), or (M * B, K, D).
    """
    if len(index) > len(tokens):
        copies = index.unflatten(0, (-1, len(tokens)))[..., None]
        rows = tokens.expand(len(copies), -1, -1, -1)
        return rows.gather(2, copies.expand(-1, -1, -1, tokens.shape[-1])).flatten(0, 1)
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cut images into patches, each flattened in the order of a convolution's weight.

    Args:
        images: (B, C, H, W), H and W multiples of the patch size.
        patch_size: Height and width of a patch, in pixels.

    Returns:
        (B, N, C * height * width), patches in raster order.
    """
    b, c, h, w = images.shape
    p, q = patch_size
    x = images.reshape(b, c, h // p, p, w // q, q).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(b, (h // p) * (w // q), c * p * q)


def pool_cells(tokens: Tensor, grid: tuple[int, int], cell: int) -> Tensor:
    """Average tokens over cells of `cell` x `cell` patches.

    Args:
        tokens: (B, H * W, D) in raster order.
        grid: H and W, both multiples of `cell`.
        cell: Height and width of a cell, in patches.

    Returns:
        (B, H // cell * W // cell, D) in raster order of the cells.
    """
    if cell == 1:
        return tokens
    b, _, d = tokens.shape
    h, w = grid
    x = tokens.reshape(b, h // cell, cell, w // cell, cell, d)
    return x.mean(dim=(2, 4)).reshape(b, -1, d)


def cell_patches(cells: Tensor, grid: tuple[int, int], cell: int) -> Tensor:
    """Return the patches of cells.

    Args:
        cells: (B, Q) int64 indices on the grid of the cells.
        grid: H and W in patches, both multiples of `cell`.
        cell: Height and width of a cell, in patches.

    Returns:
        (B, Q * cell * cell) int64 indices on the grid of the patches; those of one cell are adjacent.
    """
    if cell == 1:
        return cells
    columns = grid[1] // cell
    corner = cells // columns * cell * grid[1] + cells % columns * cell
    step = torch.arange(cell, device=cells.device)
    return (corner[..., None] + (step[:, None] * grid[1] + step).flatten()).flatten(1)


def plain_norm(tokens: Tensor) -> Tensor:
    """Normalize the last axis to mean 0 and variance 1, without parameters (targets of I-JEPA, arXiv:2301.08243)."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def cell_centers(grid: tuple[int, int], cell: int = 1) -> tuple[Tensor, Tensor]:
    """Return row and column of the centers of all cells of a grid (H, W), in patches: two (cells,) float64 tensors."""
    axes = [torch.arange(n // cell, dtype=torch.float64) * cell + (cell - 1) / 2 for n in grid]
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    return rows.flatten(), columns.flatten()


def sincos_at(rows: Tensor, columns: Tensor, dim: int) -> Tensor:
    """Return the sine-cosine embedding (..., dim) of rows and columns (...), in patches: columns first, then rows."""
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=rows.dtype, device=rows.device) / (dim // 4))
    angles = [x[..., None] * frequency for x in (columns, rows)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=-1)


def sincos_positions(grid: tuple[int, int], dim: int, cell: int = 1) -> Tensor:
    """Return the fixed 2-D sine-cosine embedding of the centers of all cells.

    The table is that of MAE (arXiv:2111.06377; `get_2d_sincos_pos_embed` of its code, in which "w goes first") and
    I-JEPA (arXiv:2301.08243), so that their weights fit.

    Args:
        grid: H and W of the patch grid.
        dim: Width of the embedding, a multiple of 4.
        cell: Height and width of a cell, in patches; 1 gives the patches themselves.

    Returns:
        (H // cell * W // cell, dim) float32: half for the column, then half for the row, in units of patches, so that
        a cell has the mean position of its patches. Each half has the sines of all frequencies, then the cosines.
    """
    return sincos_at(*cell_centers(grid, cell), dim).float()
