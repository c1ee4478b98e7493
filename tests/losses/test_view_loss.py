import numpy as np
import pytest
import torch

from hjepa_pl.losses.view_loss import paired_views, view_loss


def test_view_loss_is_the_distance_to_the_mean_of_the_full_views() -> None:
    z = torch.randn(4, 3, 5, dtype=torch.float64)
    for partial in (0, 1, 2):
        slow = np.mean(
            [[(z[v, b] - z[partial:, b].mean(0)).square().mean().item() for b in range(3)] for v in range(4)]
        )
        assert float(view_loss(z, partial)) == pytest.approx(slow, abs=1e-6)
    z.requires_grad_(True)
    view_loss(z).backward()
    assert (z.grad.flatten(1).abs().sum(1) > 0).all()  # the gradient reaches every view


@pytest.mark.parametrize(
    ("partial", "pairs"),
    [
        (0, {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}),
        (2, {(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}),
        (3, {(0, 3), (1, 3), (2, 3)}),
    ],
)
def test_pairs_hold_a_full_view(partial, pairs) -> None:
    left, right = paired_views(torch.arange(4.0)[:, None, None], partial)
    assert {(int(i), int(j)) for i, j in zip(left.flatten(), right.flatten(), strict=True)} == pairs
    assert left.shape == right.shape == (len(pairs), 1, 1)
    z = torch.randn(4, 3, 5, dtype=torch.float64)
    slow = np.mean([(z[i, b] - z[j, b]).square().mean().item() for i, j in pairs for b in range(3)])
    assert float(view_loss(z, partial, "pairwise")) == pytest.approx(slow, abs=1e-6)


def test_pairwise_reaches_both_sides_and_is_a_multiple_of_the_mean_form() -> None:
    for views in (2, 3, 5):
        z = torch.randn(views, 3, 5)
        ratio = float(view_loss(z, 0, "pairwise") / view_loss(z))
        assert ratio == pytest.approx(2 * views / (views - 1), rel=1e-5)
    z = torch.randn(2, 3, 5, requires_grad=True)
    view_loss(z, 1, "pairwise").backward()
    torch.testing.assert_close(z.grad[0], -z.grad[1])
    assert z.grad.any()


def test_local_views_do_not_attract_each_other() -> None:
    """With the full views where they are, a local view's gradient is the same wherever another local view is."""
    z = torch.randn(4, 3, 5, requires_grad=True)
    moved = (z.detach() + torch.tensor([9.0, 0, 0, 0])[:, None, None]).requires_grad_(True)
    for compare in ("mean", "pairwise"):
        one, other = (torch.autograd.grad(view_loss(x, 2, compare), x)[0] for x in (z, moved))
        torch.testing.assert_close(one[1], other[1])
        assert not torch.allclose(one[0], other[0])


def test_no_comparison_has_no_value() -> None:
    with pytest.raises(ValueError, match="compare must be 'mean' or 'pairwise'"):
        view_loss(torch.randn(2, 3, 4), compare="none")
