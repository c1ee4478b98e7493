import pytest
import torch

from hjepa_pl.functional.choice import LATER, first_true, scores, smallest


class Elsewhere(torch.Tensor):
    """Stands for a tensor that NumPy cannot read: `smallest` takes the path of a GPU."""


@pytest.mark.parametrize("n", [1, 2, 3, 16, 49, 64, 196, 256, 257, 1024, 4095, 4096])
def test_scores_fit_31_bits_are_distinct_and_hold_their_place(n) -> None:
    """Apple's GPUs select 64-bit numbers in 32 bits (torch 2.11 and 2.12): no score may need more."""
    drawn = scores(5, torch.arange(300) * 977, n)
    assert drawn.dtype == torch.int32
    assert drawn.min() >= 0
    assert drawn.max() < LATER
    assert torch.iinfo(torch.int32).max == LATER + LATER - 1
    assert all(len(row.unique()) == n for row in drawn)
    assert torch.equal(smallest(drawn.clone(), n).sort(dim=1).values, torch.arange(n).expand(300, -1))


def test_every_place_is_as_likely_as_every_other() -> None:
    count = torch.bincount(smallest(scores(3, torch.arange(20000), 50), 10).flatten(), minlength=50)
    assert (count - 4000).abs().max() < 4 * (20000 * 0.2 * 0.8) ** 0.5


@pytest.mark.parametrize("later", [False, True])
def test_the_smallest_are_picked_as_a_sort_picks_them(later) -> None:
    values = scores(5, torch.arange(40), 196)
    if later:
        values += LATER * (torch.arange(196) % 3 == 0)
    for count in (1, 68, 196):
        expected = values.argsort(dim=1)[:, :count].sort(dim=1).values
        assert torch.equal(smallest(values.clone(), count).sort(dim=1).values, expected)
        elsewhere = smallest(values.clone().as_subclass(Elsewhere), count)
        assert torch.equal(elsewhere.as_subclass(torch.Tensor).sort(dim=1).values, expected)
        if later:
            assert bool((expected % 3 != 0).all()) is (count <= 130)


def test_the_first_true_is_found_whatever_else_is_true() -> None:
    flags = torch.rand(500, 5, generator=torch.Generator().manual_seed(0)) < 0.3
    assert first_true(flags).tolist() == [row.index(True) if any(row) else 0 for row in flags.tolist()]
    # No two flags that are set have one weight: there is nothing to tie.
    assert first_true(torch.ones(3, 7, dtype=torch.bool)).tolist() == [0, 0, 0]
