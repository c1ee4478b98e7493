import numpy as np
import torch
from scipy import stats

from hjepa_pl.functional.counters import hash_counters, hash_int, normal, uniform


def test_uniform_numbers_pass_a_kolmogorov_test_and_do_not_repeat() -> None:
    u = uniform(hash_int(1, 2), torch.arange(400), 100)
    assert u.shape == (400, 100)
    assert float(u.min()) >= 0.0
    assert float(u.max()) < 1.0
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 0.01
    assert len(u.flatten().unique()) > 0.99 * u.numel()


def test_neighbouring_counters_are_uncorrelated() -> None:
    u = uniform(7, torch.arange(5000), 4).numpy()
    for a, b in ((u[:-1, 0], u[1:, 0]), (u[:, 0], u[:, 1]), (u[:, 2], uniform(8, torch.arange(5000), 4).numpy()[:, 2])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05


def test_a_sample_draws_the_same_whatever_batch_it_is_in() -> None:
    whole = uniform(3, torch.arange(10), 5)
    torch.testing.assert_close(uniform(3, torch.tensor([7, 2]), 5), whole[[7, 2]], rtol=0, atol=0)


def test_hashes_are_pinned() -> None:
    # A change here changes every resumed run: it must be deliberate.
    assert hash_int(0, 1, 2) == hash_int(0, 1, 2)
    assert hash_int(0, 1) != hash_int(1, 0)
    assert hash_int(2**40) != hash_int(0)
    assert hash_counters(5, torch.tensor([0, 1, 2**40])).tolist() == GOLDEN


GOLDEN = [3808757856, 2771165752, 301399474]


def test_normal_numbers_are_normal() -> None:
    x = normal(11, (200, 100), torch.device("cpu"))
    assert x.isfinite().all()
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 0.01


def test_how_many_are_drawn_at_a_time_changes_no_normal_number() -> None:
    def boxed(key: int, count: int) -> torch.Tensor:
        u = uniform(key, torch.arange(count), 2)
        return torch.sqrt(-2.0 * torch.log1p(-u[:, 0])) * torch.cos(2.0 * torch.pi * u[:, 1])

    for count in (1, 2**16, 2**16 + 1, 200_003):
        assert torch.equal(normal(4, (count,), torch.device("cpu")), boxed(4, count))
    assert (
        normal(4, (3, 2), torch.device("cpu")).tolist() == normal(4, (6,), torch.device("cpu")).reshape(3, 2).tolist()
    )


def test_the_counters_are_left_as_they_are() -> None:
    position = torch.tensor([0, 1, 2**40])
    hash_counters(5, position)
    uniform(5, position, 3)
    assert position.tolist() == [0, 1, 2**40]
