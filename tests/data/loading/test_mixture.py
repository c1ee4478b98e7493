import numpy as np
import pytest

from hjepa_pl.data.loading.mixture import EpochPlan, largest_remainder, mixture_weights
from hjepa_pl.types import ConfigError


def test_shares_are_exact():
    plan = EpochPlan([50, 30, 70], [0.5, 0.3, 0.2], 1000, seed=1)
    source, _ = plan.draw(3)
    assert np.bincount(source).tolist() == [500, 300, 200]
    for size in (7, 384, 997, 113_001):  # no whole shares: to one sample, and all of the epoch
        plan = EpochPlan([50, 30, 70], [0.5, 0.3, 0.2], size, seed=1)
        for epoch in (0, 1):
            counts = np.bincount(plan.draw(epoch)[0])
            assert (abs(counts - np.array([0.5, 0.3, 0.2]) * size) < 1).all()
            assert counts.sum() == size
    assert largest_remainder([1 / 3, 1 / 3, 1 / 3], 10) == [4, 3, 3]
    assert largest_remainder([0.1, 0.2, 0.7], 10) == [1, 2, 7]
    assert EpochPlan([5, 5], [3, 1], 8, seed=0).counts == [6, 2]


def test_without_replacement_pass_after_pass_over_epochs():
    plan = EpochPlan([7, 20], [1, 1], 10, seed=2)
    drawn = [[], []]
    for epoch in range(8):
        source, index = plan.draw(epoch)
        for d in (0, 1):
            drawn[d].extend(index[source == d].tolist())
    for d, size in enumerate((7, 20)):
        assert len(drawn[d]) == 40
        for lap in range(40 // size):
            assert sorted(drawn[d][lap * size : (lap + 1) * size]) == list(range(size))
    assert drawn[0][:7] != drawn[0][7:14]


def test_a_pure_function_of_seed_and_epoch():
    a, b = (EpochPlan([9, 9], [1, 2], 12, seed=4) for _ in range(2))
    a.draw(0)
    for x, y in zip(a.draw(5), b.draw(5), strict=True):
        assert (x == y).all()
    assert (a.draw(0)[0] != a.draw(1)[0]).any()
    assert (EpochPlan([9, 9], [1, 2], 12, seed=5).draw(5)[1] != a.draw(5)[1]).any()


def test_samplings():
    sizes = [100, 300]
    assert mixture_weights("weighted", [3, 1], sizes, None) == [0.75, 0.25]
    assert mixture_weights("balanced", [1, 1], sizes, None) == [0.5, 0.5]
    assert mixture_weights("concat", [1, 1], sizes, None) == [0.25, 0.75]
    assert mixture_weights("temperature", [9, 1], sizes, 2.0) == pytest.approx([0.75, 0.25])
    assert mixture_weights("temperature", [9, 1], sizes, 1e-3) == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize(
    ("sampling", "weights", "temperature", "message"),
    [
        ("even", [1, 1], None, "invalid `data.sampling=even`: must be weighted, balanced, concat or temperature"),
        ("temperature", [1, 1], None, "must be a number > 0 with sampling=temperature"),
        ("temperature", [1, 1], float("nan"), "must be a number > 0 with sampling=temperature"),
        ("weighted", [1, 1], 2.0, "has no effect with sampling=weighted"),
        ("balanced", [1, 2], None, "has no effect with sampling=balanced"),
        ("concat", [1, 2], None, "has no effect with sampling=concat"),
        ("weighted", [1, 0], None, "invalid `datasets.weight=.*`: must be a number > 0"),
        ("weighted", [1, -1], None, "invalid `datasets.weight=.*`: must be a number > 0"),
        ("weighted", [1, float("nan")], None, "invalid `datasets.weight=.*`: must be a number > 0"),
    ],
)
def test_refusals(sampling, weights, temperature, message):
    with pytest.raises(ConfigError, match=message):
        mixture_weights(sampling, weights, [5, 5], temperature)


def test_a_weight_too_small_to_be_drawn_is_refused():
    with pytest.raises(
        ConfigError, match=r"number 2 is 0\.001 of the mixture, less than one image in an epoch of 10; raise"
    ):
        EpochPlan([5, 5], [1000, 1], 10, seed=0)
