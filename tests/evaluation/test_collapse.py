"""The figures of collapse on codes whose answer is known (table of findings 1.3)."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hjepa_pl.callbacks import CollapseMonitor
from hjepa_pl.evaluation import (
    effective_rank,
    image_share,
    position_share,
    power_shares,
    prediction_gain,
    std_across_images,
)
from hjepa_pl.types import ConfigError, LevelState

B, N, D = 128, 49, 64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian() -> Tensor:
    return randn(B, N, D)


def position_only() -> Tensor:
    return randn(1, N, D).expand(B, N, D)


def constant() -> Tensor:
    return randn(1, 1, D).expand(B, N, D)


def test_living_code() -> None:
    x = gaussian()
    assert std_across_images(x).item() == pytest.approx(1, abs=0.02)
    assert position_share(x).item() == pytest.approx(0, abs=0.01)
    assert effective_rank(x.mean(1)) > 45


@pytest.mark.parametrize("code", [position_only, constant])
def test_dead_code(code: object) -> None:
    x = code()  # type: ignore[operator]
    assert std_across_images(x).item() == pytest.approx(0, abs=1e-5)
    assert position_share(x).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(x.mean(1)) == 1


def test_flattened_rank_is_blind_to_position_only_collapse() -> None:
    """Why the figures compare images: the rank over flattened tokens is green on a dead code."""
    assert effective_rank(position_only().reshape(-1, D)) > 30


def test_position_share_is_a_share() -> None:
    mixed = gaussian() + 3**0.5 * randn(1, N, D, seed=1)
    assert position_share(mixed).item() == pytest.approx(0.75, abs=0.03)
    small = randn(2, N, D) + 100  # two images and a large common mean
    assert position_share(small).item() < 0.05


def test_rank_equals_the_svd_and_ignores_the_mean() -> None:
    x = randn(200, 30).double() * torch.linspace(0.1, 3, 30)
    s = np.linalg.svd((x - x.mean(0)).numpy(), compute_uv=False)
    p = s / s.sum()
    assert effective_rank(x) == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-6)
    assert effective_rank(x + 50) == pytest.approx(effective_rank(x), rel=1e-4)
    assert effective_rank(randn(20, 300)) <= 19.001
    assert effective_rank(randn(100, 3) @ randn(3, 64, seed=1)) <= 3.0001


def state(prediction: Tensor | None, target_map: Tensor, queries: int = 12) -> LevelState:
    cells = torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(b))[:queries] for b in range(B)])
    target = target_map.gather(1, cells[..., None].expand(-1, -1, D))
    if prediction is None:
        prediction = target_map.mean(0)[cells]
    elif prediction.dim() == 2:
        prediction = prediction[cells]
    return LevelState(prediction, target, cells, target_map)


def test_gain_of_a_perfect_and_of_a_positional_predictor() -> None:
    places = randn(N, D, seed=3)
    targets = gaussian() + places
    good = state(None, targets)
    assert prediction_gain(good._replace(prediction=good.target)).item() == pytest.approx(1)
    # The true mean of each position gains nothing, in spite of the batch mean's being fitted to the batch.
    assert prediction_gain(state(places, targets)).item() == pytest.approx(0, abs=0.01)
    half = good._replace(prediction=places[good.cells] + 0.5 * (good.target - places[good.cells]))
    assert prediction_gain(half).item() == pytest.approx(0.75, abs=0.01)


def test_gain_is_unbiased_in_a_tiny_batch() -> None:
    places = randn(N, D, seed=3)
    targets = randn(2, N, D) + places
    cells = torch.arange(N).expand(2, N)
    tiny = LevelState(places[cells], targets, cells, targets)
    assert prediction_gain(tiny).item() == pytest.approx(0, abs=0.05)


def test_gain_on_a_dead_code_is_zero_although_the_loss_is() -> None:
    dead = state(None, position_only())
    assert prediction_gain(dead).item() == 0


def test_one_image_is_refused() -> None:
    for figure in (std_across_images, position_share):
        with pytest.raises(ConfigError, match="1 image"):
            figure(gaussian()[:1])
    with pytest.raises(ConfigError, match="1 image"):
        effective_rank(randn(1, D))


def test_image_share_is_the_variance_component_of_a_two_way_layout() -> None:
    g = torch.Generator().manual_seed(0)
    images, cells, width = 400, 16, 8
    image, place = torch.randn(images, 1, width, generator=g), torch.randn(1, cells, width, generator=g)
    local = torch.randn(images, cells, width, generator=g)
    for a, b in ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (2.0, 1.0), (1.0, 3.0)):
        share = image_share(a * image + b * local + 5 * place + 3)
        assert share.item() == pytest.approx(a * a / (a * a + b * b), abs=0.02)
    few = torch.stack([image_share(torch.randn(16, 4, 32, generator=g)) for _ in range(20)])
    assert few.mean().item() < 0.02  # and not 1/4, which the means of four cells would have by chance


def test_power_shares_equal_a_slow_computation_and_sum_to_one() -> None:
    x = (gaussian()[:6, :5, :3] + randn(6, 1, 3, seed=1) + 0.5 * randn(1, 5, 3, seed=2) + 0.3).double()
    parts = dict.fromkeys(("constant", "position", "image", "local"), 0.0)
    total = 0.0
    for channel in x.unbind(dim=2):
        mean = channel.sum() / 30
        for i in range(6):
            for n in range(5):
                place, image = channel[:, n].sum() / 6 - mean, channel[i].sum() / 5 - mean
                values = (mean, place, image, channel[i, n] - mean - place - image)
                for name, value in zip(parts, values, strict=True):
                    parts[name] += float(value) ** 2
                total += float(channel[i, n]) ** 2
    found = power_shares(x)
    assert sum(found.values()).item() == pytest.approx(1, abs=1e-6)
    for name, value in parts.items():
        assert found[name].item() == pytest.approx(value / total, rel=1e-4)


def test_targets_as_flat_has_them_are_above_the_monitors_limit() -> None:
    """The shares that were measured: .01 constant, .94 image, .05 local; with instance norm .14, .21 and .65."""
    image, local, constant = randn(B, 1, D), randn(B, N, D, seed=1), randn(1, 1, D, seed=2)
    for weights, red in (((0.01, 0.94, 0.05), True), ((0.14, 0.21, 0.65), False)):
        code = sum(w**0.5 * part for w, part in zip(weights, (constant, image, local), strict=True))
        found = power_shares(code)
        for name, weight in zip(("constant", "image", "local"), weights, strict=True):
            assert found[name].item() == pytest.approx(weight, abs=0.04)
        assert bool(CollapseMonitor()._problem("image_share", image_share(code).item())) is red


def test_image_share_of_codes_that_do_not_tell_images_apart_is_none() -> None:
    assert image_share(randn(1, 16, 8).expand(12, -1, -1)).item() == 0
    assert image_share(torch.ones(12, 16, 8)).item() == 0
    with pytest.raises(ConfigError, match="1 cell"):
        image_share(randn(12, 1, 8))
