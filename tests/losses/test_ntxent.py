import math

import numpy as np
import pytest
import torch

from hjepa_pl.losses import NTXent
from hjepa_pl.losses.regularize import regularize


def slow_ntxent(views: np.ndarray, temperature: float, beta: float | None, pairs: list[tuple[int, int]]) -> float:
    """Equation 1 of SimCLR, and equation 4 of Robinson et al., as they are written."""
    losses, images = [], views.shape[1]
    for pair in pairs:
        for view, other in (pair, pair[::-1]):
            for i in range(images):

                def s(a: np.ndarray, z: np.ndarray = views[view, i]) -> float:
                    return float(a @ z / np.linalg.norm(a) / np.linalg.norm(z)) / temperature

                positive = math.exp(s(views[other, i]))
                negatives = [s(views[v, k]) for v in pair for k in range(images) if k != i]
                weights = [math.exp((beta or 0.0) * x) for x in negatives]
                share = [w / np.mean(weights) for w in weights]
                noise = sum(w * math.exp(x) for w, x in zip(share, negatives, strict=True))
                losses.append(-math.log(positive / (positive + noise)))
    return float(np.mean(losses))


@pytest.mark.parametrize("beta", [None, 0.5, 2.0])
@pytest.mark.parametrize(("partial", "pairs"), [(0, [(0, 1), (0, 2), (1, 2)]), (2, [(0, 2), (1, 2)])])
def test_ntxent_equals_a_float64_formula(beta, partial, pairs) -> None:
    views = 2 * torch.randn(3, 5, 4, dtype=torch.float64)
    for temperature in (0.1, 0.7):
        term = NTXent(temperature=temperature, hard_negatives=beta)
        slow = slow_ntxent(views.numpy(), temperature, beta, pairs)
        assert float(term(views, partial=partial)) == pytest.approx(slow, abs=1e-6)
        single = regularize(term, views.float(), None, 1, 0, partial)
        assert float(single) == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("beta", [None, 1.5])
def test_gradients_reach_both_sides_and_the_weights(beta) -> None:
    views = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(NTXent(temperature=0.5, hard_negatives=beta), views)
    grad = torch.autograd.grad(NTXent(temperature=0.5, hard_negatives=beta)(views), views)[0]
    assert (grad.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_of_random_keys_it_is_the_logarithm_of_their_number(temperature) -> None:
    images, width = 128, 2048
    spread = 1 / (temperature * math.sqrt(width))  # of a similarity between random directions
    # The mean of exp(s) is exp(spread^2 / 2); of 2B losses, B differ in their positive pair.
    expected = math.log(1 + (2 * images - 2) * math.exp(spread**2 / 2))
    found = float(NTXent(temperature=temperature)(torch.randn(2, images, width)))
    assert abs(found - expected) < 4 * spread / math.sqrt(images) + 2e-3
    assert found == pytest.approx(math.log(2 * images - 1), abs=0.1)


def test_the_order_of_views_and_images_and_the_scale_do_not_matter() -> None:
    views = torch.randn(3, 6, 8)
    value = float(NTXent()(views))
    scaled = views * torch.rand(3, 6, 1).add(0.1) * 100
    for other in (views.flip(0), views[:, torch.randperm(6)], scaled):
        assert float(NTXent()(other)) == pytest.approx(value, rel=1e-4)


def test_identical_views_of_different_images_cost_nothing_at_a_low_temperature() -> None:
    one = torch.randn(16, 32)
    views = torch.stack([one, one]).requires_grad_(True)
    value = NTXent(temperature=0.005)(views)
    value.backward()
    assert float(value.detach()) < 1e-6
    assert views.grad.isfinite().all()


def test_it_is_finite_where_exponentials_overflow() -> None:
    for beta in (None, 3.0):
        views = torch.randn(2, 8, 16, requires_grad=True)
        value = NTXent(temperature=1e-3, hard_negatives=beta)(views)
        value.backward()
        assert value.isfinite()
        assert views.grad.isfinite().all()


def test_hard_negatives_put_the_gradient_on_the_nearest() -> None:
    torch.manual_seed(1)
    views = torch.randn(2, 8, 16, dtype=torch.float64)
    views[:, 1] = views[:, 0] + 0.5 * torch.randn(2, 16)  # images 0 and 1 are each other's nearest
    assert float(NTXent(temperature=0.5, hard_negatives=1e-7)(views)) == pytest.approx(
        float(NTXent(temperature=0.5)(views)), abs=1e-6
    )

    def share(beta: float | None) -> float:
        leaf = views.clone().requires_grad_(True)
        grad = torch.autograd.grad(NTXent(temperature=0.5, hard_negatives=beta)(leaf), leaf)[0]
        return float(grad[:, :2].norm() / grad.norm())

    shares = [share(beta) for beta in (None, 0.5, 1.0, 2.0)]
    assert shares == sorted(shares)
    assert shares[-1] > 1.05 * shares[0]


def test_autocast_does_not_reach_it() -> None:
    views, term = torch.randn(2, 8, 16), NTXent()
    plain = regularize(term, views, None, 1, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(regularize(term, views, None, 1, 0), plain)
