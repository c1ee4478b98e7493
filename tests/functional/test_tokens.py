"""Sine-cosine positions against the published formula, number by number."""

import math

import torch

from hjepa_pl.functional.tokens import sincos_at, sincos_positions


def mae_table(dim: int, side: int) -> list[list[float]]:
    """Return what MAE's and I-JEPA's `get_2d_sincos_pos_embed(dim, side)` computes, in raster order of the patches.

    Their meshgrid has "w first": the first half of a patch's numbers is of its column, the second of its row; each half
    is the sines of dim / 4 frequencies 10000^(-i / (dim / 4)), then the cosines.
    """
    table = []
    for row in range(side):
        for column in range(side):
            numbers: list[float] = []
            for place in (column, row):
                angles = [place / 10000 ** (i / (dim / 4)) for i in range(dim // 4)]
                numbers += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            table.append(numbers)
    return table


def test_the_table_is_that_of_mae_and_ijepa() -> None:
    torch.testing.assert_close(sincos_positions((14, 14), 48), torch.tensor(mae_table(48, 14)))


def test_a_cell_lies_at_the_mean_of_its_patches() -> None:
    """Of cell 2 at row 1 and column 2: patches 2..3 by 4..5, whose centre is row 2.5, column 4.5."""
    found = sincos_positions((4, 8), 16, cell=2)[1 * 4 + 2]
    expected = sincos_at(torch.tensor(2.5), torch.tensor(4.5), 16)
    torch.testing.assert_close(found, expected)
    assert found[0].item() == torch.tensor(4.5).sin().item()
