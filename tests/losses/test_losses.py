import math

import numpy as np
import pytest
import torch

from hjepa_pl.functional.counters import hash_int, normal
from hjepa_pl.losses.prediction import prediction_loss, view_loss
from hjepa_pl.losses.settings import RegularizerConfig
from hjepa_pl.losses.sigreg import epps_pulley, sigreg
from hjepa_pl.losses.streams import center_positions, regularize
from hjepa_pl.losses.vicreg import covariance_term, invariance_term, variance_term, vicreg
from hjepa_pl.types import ConfigError


def test_prediction_losses_equal_float64_formulas() -> None:
    p, t = torch.randn(4, 5, 6, dtype=torch.float64) * 2, torch.randn(4, 5, 6, dtype=torch.float64)
    d = (p - t).numpy()
    smooth = np.where(np.abs(d) < 1, 0.5 * d**2, np.abs(d) - 0.5).mean()
    cosine = 1 - np.mean((p * t).sum(-1).numpy() / np.linalg.norm(p, axis=-1) / np.linalg.norm(t, axis=-1))
    for kind, expected in (("smooth_l1", smooth), ("mse", (d**2).mean()), ("cosine", cosine)):
        assert float(prediction_loss(p, t, kind)) == pytest.approx(expected, abs=1e-6)


def test_view_loss_is_the_distance_to_the_mean() -> None:
    z = torch.randn(3, 4, 5, dtype=torch.float64)
    slow = np.mean([[(z[v, b] - z[:, b].mean(0)).square().mean().item() for b in range(4)] for v in range(3)])
    assert float(view_loss(z)) == pytest.approx(slow, abs=1e-6)
    z.requires_grad_(True)
    view_loss(z).backward()
    assert (z.grad.flatten(1).abs().sum(1) > 0).all()  # the gradient reaches every view


def slow_epps_pulley(x: np.ndarray, knots: int) -> float:
    """The quadrature of LeJEPA's equation, in float64 and in loops."""
    t = np.linspace(0, 3, knots)
    values = []
    for point in t:
        phi = np.mean(np.exp(1j * point * x))
        values.append(abs(phi - math.exp(-point * point / 2)) ** 2 * math.exp(-point * point / 2))
    return 2 * float(np.trapezoid(values, t))


def test_sigreg_equals_a_float64_formula() -> None:
    x = torch.randn(40, 6) * 1.3 + 0.2
    slow = [slow_epps_pulley(x[:, i].double().numpy(), 17) for i in range(6)]
    np.testing.assert_allclose(epps_pulley(x).numpy(), slow, atol=1e-6)
    directions = normal(9, (6, 32), x.device).double()
    directions /= directions.norm(dim=0)
    expected = np.mean([slow_epps_pulley((x.double() @ directions[:, i]).numpy(), 17) for i in range(32)])
    assert float(sigreg(x, 9, num_slices=32)) == pytest.approx(expected, abs=1e-6)


def test_sigreg_of_a_gaussian_is_far_below_that_of_what_is_not_one() -> None:
    z = torch.randn(512, 32)
    null = float(sigreg(z, 0))
    assert 512 * null == pytest.approx(1.0, rel=0.4)  # N x EP is about 1 where it is satisfied
    for bad in (torch.zeros(512, 32) + 0.3, 3 * z, 0.2 * z, z + 1.0, z[:, :1].expand(-1, 32)):
        assert float(sigreg(bad, 0)) > 10 * null


def test_sigreg_has_a_useful_gradient_at_total_collapse() -> None:
    z = (torch.full((64, 16), 0.1) + 1e-3 * torch.randn(64, 16)).requires_grad_(True)
    before = float(sigreg(z, 0).detach())
    z.grad = torch.autograd.grad(sigreg(z, 0), z)[0]
    assert float(z.grad.norm()) > 1e-3
    with torch.no_grad():
        for step in range(200):
            with torch.enable_grad():
                y = z.detach().requires_grad_(True)
                grad = torch.autograd.grad(sigreg(y, step), y)[0]
            z = y - 50.0 * grad
    assert float(sigreg(z, 1)) < 0.2 * before


def test_vicreg_terms_at_hand_computed_values() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 2.0], [-1.0, -2.0]])
    # Column variances 4/3 and 8/3: standard deviations above 1 cost nothing.
    assert float(variance_term(x)) == 0.0
    assert float(variance_term(0.1 * x)) == pytest.approx(
        np.mean([1 - math.sqrt(0.01 * 4 / 3 + 1e-4), 1 - math.sqrt(0.01 * 8 / 3 + 1e-4)]), abs=1e-6
    )
    # Covariance of the columns: (0 + 0 + 2 + 2) / 3; both off-diagonals squared, over D = 2.
    assert float(covariance_term(x)) == pytest.approx(2 * (4 / 3) ** 2 / 2, abs=1e-6)
    assert float(invariance_term(torch.stack([x, x + 2.0]))) == pytest.approx(4.0)
    views = torch.stack([x, 0.1 * x])
    terms = 25 * float(invariance_term(views))
    terms += np.mean([25 * float(variance_term(v)) + float(covariance_term(v)) for v in views])
    assert float(vicreg(views)) == pytest.approx(terms, rel=1e-6)


def position_only(images: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.randn(1, 16, 32)
    return codes.expand(images, -1, -1), torch.arange(16).expand(images, -1)


@pytest.mark.parametrize("kind", ["sigreg", "vicreg"])
def test_the_token_stream_sees_position_only_collapse(kind) -> None:
    """Flattened, a code of positions passes for a Gaussian; compared between images at a position, it does not."""
    tokens, index = position_only()
    healthy = torch.randn(64, 16, 32)
    config = RegularizerConfig(kind=kind, stream="tokens")
    bad = float(regularize(config, tokens, index, 16, key=1))
    good = float(regularize(config, healthy, index, 16, key=1))
    total = float(regularize(config, torch.zeros(64, 16, 32), index, 16, key=1))
    assert good < 0.1 * bad
    assert bad == pytest.approx(total, rel=1e-3)  # as bad as a total collapse


def test_centring_keeps_unit_variance_and_leaves_lone_tokens_out() -> None:
    tokens, index = torch.randn(3, 40, 32), torch.stack([torch.randperm(64)[:40] for _ in range(3)])
    centred = center_positions(tokens, index, 64)
    counts = torch.bincount(index.flatten(), minlength=64)
    assert len(centred) == int(counts[counts > 1].sum())
    assert float(centred.var()) == pytest.approx(1.0, rel=0.1)


def test_directions_change_with_the_step_and_not_otherwise() -> None:
    x = torch.randn(1, 16, 8)
    config = RegularizerConfig(kind="sigreg", num_slices=8)
    values = [float(regularize(config, x, None, 1, key=hash_int(0, step))) for step in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "sigreg", "weight": -1.0}, "regularizers.weight must be a positive number, got -1.0"),
        ({"kind": "sigreg", "weight": 0.0}, "leave the term out"),
        ({"kind": "sigreg", "variance": 1.0}, "regularizers.variance does nothing with kind 'sigreg'"),
        ({"kind": "vicreg", "num_slices": 8}, "regularizers.num_slices does nothing with kind 'vicreg'"),
        ({"kind": "vicreg", "stream": "tokens", "invariance": 1.0}, "regularizers.invariance does nothing on stream"),
        ({"kind": "sigreg", "knots": 1}, "regularizers.knots must be at least 2"),
    ],
)
def test_bad_regularizers_are_refused(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        RegularizerConfig(**settings)
