"""RankMe, alpha-ReQ and LiDAR against slow computations in numpy, and on features whose value is known."""

import math

import numpy as np
import pytest
import torch

from hjepa_pl.evaluation.spectra import alpha_req, lidar, power_law_exponent, rankme
from hjepa_pl.types import ConfigError


def _features(n: int = 200, d: int = 24) -> torch.Tensor:
    """Correlated features with a mean."""
    g = torch.Generator().manual_seed(1)
    mix = torch.randn(d, d, generator=g) * torch.arange(1, d + 1) ** -0.7
    return torch.randn(n, d, generator=g) @ mix.T + torch.randn(d, generator=g)


def _views(n: int = 60, q: int = 8, d: int = 12) -> torch.Tensor:
    g = torch.Generator().manual_seed(2)
    scale = torch.linspace(0.2, 2, d)
    return torch.randn(n, 1, d, generator=g) * scale + 0.5 * torch.randn(n, q, d, generator=g) * scale.flip(0)


def _entropy_rank(values: np.ndarray) -> float:
    p = values / np.abs(values).sum() + 1e-7
    return float(np.exp(-np.sum(p * np.log(p))))


@pytest.mark.parametrize("n", [200, 15])
def test_rankme_is_that_of_numpy_s_singular_values(n) -> None:
    x = _features(n)
    expected = _entropy_rank(np.linalg.svd(x.numpy().astype(np.float64), compute_uv=False))
    assert rankme(x) == pytest.approx(expected, rel=1e-4)
    assert rankme(7 * x) == pytest.approx(expected, rel=1e-4)


def test_rankme_of_an_isotropic_gaussian_is_d_and_of_one_direction_is_1() -> None:
    g = torch.Generator().manual_seed(0)
    assert rankme(torch.randn(20000, 32, generator=g)) == pytest.approx(32, abs=0.1)
    assert rankme(torch.randn(300, 1, generator=g) * torch.randn(32, generator=g)) == pytest.approx(1, abs=1e-3)
    assert rankme(torch.ones(50, 16)) == pytest.approx(1, abs=1e-3)  # every image has the same features
    assert rankme(torch.zeros(50, 16)) == 1


def test_alpha_req_is_the_weighted_fit_by_numpy() -> None:
    x = _features()
    values = np.sort(np.linalg.eigvalsh(np.cov(x.numpy().T.astype(np.float64))))[::-1][:12]
    j = np.arange(1, 13)
    slope = np.polyfit(np.log(j), np.log(values), 1, w=np.sqrt(1 / j))[0]
    assert alpha_req(x) == pytest.approx(-slope, rel=1e-6)
    assert alpha_req(7 * x + 3) == pytest.approx(-slope, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
def test_alpha_req_of_an_exact_power_law_is_its_exponent(alpha) -> None:
    g = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(400, 40, generator=g, dtype=torch.float64))[0]
    basis = torch.linalg.qr(basis - basis.mean(dim=0))[0]  # centered and orthonormal: the covariance is exact
    rotation = torch.linalg.qr(torch.randn(40, 40, generator=g, dtype=torch.float64))[0]
    x = basis * torch.arange(1, 41) ** (-alpha / 2) @ rotation
    assert alpha_req(x) == pytest.approx(alpha, abs=1e-6)
    assert power_law_exponent(torch.arange(1, 41, dtype=torch.float64) ** -alpha) == pytest.approx(alpha, abs=1e-9)


def test_alpha_req_of_collapsed_features_is_infinite() -> None:
    assert alpha_req(torch.ones(50, 16)) == math.inf
    assert alpha_req(torch.randn(50, 1) * torch.randn(16)) == math.inf


def test_lidar_is_the_papers_formula_in_numpy() -> None:
    x = _views()
    e = x.numpy().astype(np.float64)
    n, q, d = e.shape
    within, between = np.zeros((d, d)), np.zeros((d, d))
    for image in e:
        mean = image.mean(0)
        between += np.outer(mean - e.mean((0, 1)), mean - e.mean((0, 1))) / n
        for view in image:
            within += np.outer(view - mean, view - mean) / (n * q)
    values, axes = np.linalg.eigh(within + 1e-4 * np.eye(d))
    root = axes @ np.diag(values**-0.5) @ axes.T
    expected = _entropy_rank(np.linalg.eigvalsh(root @ between @ root))
    assert lidar(x) == pytest.approx(expected, rel=1e-5)
    few = x[:9]  # fewer images than dimensions
    assert 1 < lidar(few) <= 8.001


def test_lidar_of_an_isotropic_gaussian_is_d_and_counts_no_noise_of_views() -> None:
    g = torch.Generator().manual_seed(4)
    images, noise = torch.randn(5000, 1, 16, generator=g), torch.randn(5000, 8, 16, generator=g)
    assert lidar(images + 0.3 * noise) == pytest.approx(16, abs=0.1)
    one = images * torch.eye(16)[0]
    assert lidar(one + 0.01 * noise) == pytest.approx(1, abs=0.05)  # noise of the views in all directions
    assert rankme((one + noise).flatten(0, 1)) > 15  # which RankMe counts
    assert lidar(torch.ones(50, 8, 16)) == 1


def test_features_that_are_not_finite_give_nan_and_wrong_shapes_are_rejected() -> None:
    bad = _features()
    bad[3, 2] = torch.nan
    assert math.isnan(rankme(bad))
    assert math.isnan(alpha_req(bad))
    assert math.isnan(lidar(torch.full((4, 2, 3), torch.inf)))
    for call, wrong in ((rankme, torch.zeros(1, 4)), (alpha_req, torch.zeros(3, 4)), (lidar, torch.zeros(5, 1, 4))):
        with pytest.raises(ConfigError):
            call(wrong)
