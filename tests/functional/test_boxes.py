import math

import torch

from hjepa_pl.functional.boxes import places_in
from hjepa_pl.functional.tokens import cell_centers


def slow_place(box, grid, view, view_grid, row, column) -> tuple[float, float]:
    """Follow one point, in patches of a crop, to the image and from there to the view."""
    top, left, bottom, right = box
    y = top + (row + 0.5) / grid[0] * (bottom - top)
    x = left + (column + 0.5) / grid[1] * (right - left)
    top, left, bottom, right = view
    return (y - top) / (bottom - top) * view_grid[0] - 0.5, (x - left) / (right - left) * view_grid[1] - 0.5


def test_cells_of_crops_are_placed_as_a_slow_function_places_them() -> None:
    boxes = torch.tensor([[[0.1, 0.2, 0.4, 0.6], [0.5, 0.9, 0.8, 0.5]], [[0.0, 1.0, 1.0, 0.0], [0.3, 0.3, 0.5, 0.4]]])
    view = torch.tensor([[0.0, 0.1, 0.8, 1.0], [0.2, 0.9, 0.7, 0.1]])
    grid, view_grid, cell = (4, 6), (8, 10), 2
    places = places_in(boxes, grid, view, view_grid, cell)
    assert places.rows.shape == places.columns.shape == (2, 2 * 6)
    for image in range(2):
        for crop in range(2):
            box, seen = boxes[crop, image].tolist(), view[image].tolist()
            for number, (row, column) in enumerate(zip(*cell_centers(grid, cell), strict=True)):
                y, x = slow_place(box, grid, seen, view_grid, float(row), float(column))
                at = crop * 6 + number
                assert math.isclose(places.rows[image, at], y, abs_tol=1e-4)
                assert math.isclose(places.columns[image, at], x, abs_tol=1e-4)
                high = (box[2] - box[0]) / 4 / ((seen[2] - seen[0]) / 8)
                wide = (box[3] - box[1]) / 6 / ((seen[3] - seen[1]) / 10)
                expected = [math.log(high), math.log(abs(wide)), float(wide < 0)]
                torch.testing.assert_close(places.scale[image, at], torch.tensor(expected), atol=1e-4, rtol=0)


def test_a_view_lies_in_itself_where_its_patches_are() -> None:
    view = torch.tensor([[0.2, 0.9, 0.7, 0.1]])  # mirrored, as itself
    places = places_in(view[None], (5, 7), view, (5, 7))
    rows, columns = cell_centers((5, 7))
    torch.testing.assert_close(places.rows[0].double(), rows, atol=1e-5, rtol=0)
    torch.testing.assert_close(places.columns[0].double(), columns, atol=1e-5, rtol=0)
    assert float(places.scale.abs().max()) < 1e-6


def test_picked_places_are_those_of_the_index() -> None:
    corners = torch.rand(2, 3, 2) * 0.5
    boxes = torch.cat([corners, corners + 0.3], dim=2)
    places = places_in(boxes, (3, 3), boxes[1], (4, 4))
    index = torch.tensor([[0, 17], [5, 5], [9, 2]])
    picked = places.pick(index)
    for image in range(3):
        for k, at in enumerate(index[image]):
            assert picked.rows[image, k] == places.rows[image, at]
            assert torch.equal(picked.scale[image, k], places.scale[image, at])
