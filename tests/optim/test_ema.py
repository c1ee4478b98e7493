"""The target encoder's average and its momentum."""

import pytest

from hjepa_pl.optim.config import EMAConfig
from hjepa_pl.optim.ema import EMACallback


def test_the_momentum_rises_on_a_straight_line_to_its_end() -> None:
    """As in I-JEPA's code: ema[0] + i (ema[1] - ema[0]) / steps."""
    ema, steps = EMACallback(EMAConfig(momentum=0.996, momentum_end=1.0)), 8000
    for i in range(0, steps + 1, 1000):
        assert ema.momentum(i / steps, steps) == pytest.approx(0.996 + i * (1.0 - 0.996) / steps, abs=1e-12)
    assert ema.momentum(1.0, steps) == 1.0


def test_without_an_end_it_is_constant_and_its_horizon_is_at_most_a_third_of_the_run() -> None:
    ema = EMACallback(EMAConfig(momentum=0.996))
    assert {ema.momentum(share, 8000) for share in (0.0, 0.3, 1.0)} == {0.996}
    assert ema.momentum(0.5, 300) == pytest.approx(0.99)
