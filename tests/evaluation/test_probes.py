"""k-NN and linear probe against scikit-learn, on real digits."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from hjepa_pl.evaluation import evaluate_probes, fit_logistic, knn_predict, linear_probe
from hjepa_pl.evaluation.linear import PENALTIES, _logits, _rotate, standardize, top_k_accuracy
from hjepa_pl.functional.stratify import validation_split
from hjepa_pl.types import ConfigError


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return x[:1200], y[:1200], x[1200:], y[1200:]


@pytest.mark.parametrize(("k", "chunk"), [(1, 1024), (20, 100), (200, 7)])
def test_knn_predicts_what_sklearn_predicts(digits: tuple[Tensor, ...], k: int, chunk: int) -> None:
    train_x, train_y, test_x, _ = digits
    mine = knn_predict(train_x.double(), train_y, test_x.double(), 10, k=k, chunk=chunk)
    theirs = KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine", algorithm="brute")
    normal = [torch.nn.functional.normalize(x.double(), dim=1).numpy() for x in (train_x, test_x)]
    assert np.array_equal(mine.numpy(), theirs.fit(normal[0], train_y.numpy()).predict(normal[1]))


def test_knn_small_bank_votes_as_a_whole(digits: tuple[Tensor, ...]) -> None:
    train_x, train_y, test_x, _ = digits
    assert torch.equal(
        knn_predict(train_x[:15], train_y[:15], test_x, 10, k=500),
        knn_predict(train_x[:15], train_y[:15], test_x, 10, k=15),
    )


def test_knn_survives_a_small_temperature(digits: tuple[Tensor, ...]) -> None:
    train_x, train_y, test_x, _ = digits
    sharp = knn_predict(train_x, train_y, test_x, 10, temperature=1e-4)
    assert (sharp == knn_predict(train_x, train_y, test_x, 10, k=1)).float().mean() > 0.99


@pytest.mark.parametrize("l2", [1e-3, 1e-1])
def test_logistic_equals_sklearn(digits: tuple[Tensor, ...], l2: float) -> None:
    train_x, train_y, test_x, test_y = digits
    train_x, test_x = standardize(train_x.double(), test_x.double())
    weight = fit_logistic(train_x, train_y, 10, l2)
    theirs = LogisticRegression(C=1 / (l2 * len(train_x)), max_iter=2000, tol=1e-6)
    theirs.fit(train_x.numpy(), train_y.numpy())
    mine = (_logits(test_x, weight).argmax(1) == test_y).double().mean().item()
    assert abs(100 * mine - 100 * theirs.score(test_x.numpy(), test_y.numpy())) < 0.5
    assert np.abs(weight[:-1].numpy() - theirs.coef_.T).max() < 0.02


@pytest.mark.parametrize("images", [1200, 40])
def test_rotation_keeps_the_optimum(digits: tuple[Tensor, ...], images: int) -> None:
    train_x, train_y, test_x, _ = digits
    plain = standardize(train_x[:images].double(), test_x.double())
    turned = _rotate(*plain)
    logits = [_logits(x[1], fit_logistic(x[0], train_y[:images], 10, 1e-2)) for x in (plain, turned)]
    torch.testing.assert_close(*logits, atol=0.01, rtol=0.01)


def test_linear_probe_is_deterministic_and_leaves_the_generator_alone(digits: tuple[Tensor, ...]) -> None:
    torch.manual_seed(1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = linear_probe(*digits, num_classes=10)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    torch.manual_seed(2)
    with torch.inference_mode():
        assert linear_probe(*digits, num_classes=10) == first
    assert first.top1 > 90
    assert first.top5 is not None
    assert first.top5 > first.top1


def test_penalty_is_chosen_by_the_held_out_fifth(digits: tuple[Tensor, ...]) -> None:
    """Many noise features beside the pixels of few images call for a strong penalty; plain pixels do not."""
    train_x, train_y, test_x, test_y = (t[:200] for t in digits)
    noise = torch.randn(400, 500, generator=torch.Generator().manual_seed(0)) * 6
    noisy = linear_probe(torch.cat([train_x, noise[:200]], 1), train_y, torch.cat([test_x, noise[200:]], 1), test_y, 10)
    plain = linear_probe(*digits, num_classes=10)
    assert noisy.l2 > plain.l2


def test_held_out_takes_a_fifth_of_every_class() -> None:
    y = torch.arange(5).repeat(20)  # every fifth image of this bank is of one class
    held = validation_split(y)
    assert torch.bincount(y[held], minlength=5).tolist() == [4] * 5
    assert not validation_split(torch.arange(4)).any()


def test_evaluate_probes_rejects_and_reports(digits: tuple[Tensor, ...]) -> None:
    train_x, train_y, test_x, test_y = digits
    metrics = evaluate_probes(*digits, num_classes=10)
    assert set(metrics) == {"knn", "linear", "knn_val", "linear_val", "linear_top5", "linear_l2"}
    assert metrics["knn"] > 90
    with pytest.raises(ConfigError, match="two classes"):
        evaluate_probes(train_x, torch.zeros_like(train_y), test_x, test_y, 10)
    with pytest.raises(ConfigError, match="num_classes 5"):
        evaluate_probes(train_x, train_y, test_x, test_y, 5)
    with pytest.raises(ConfigError, match="-1"):
        evaluate_probes(train_x, train_y - 1, test_x, test_y, 10)
    dead = evaluate_probes(train_x * float("nan"), train_y, test_x, test_y, 10)
    assert set(dead) == set(metrics)
    assert all(math.isnan(v) for v in dead.values())


def test_constant_feature_changes_nothing(digits: tuple[Tensor, ...]) -> None:
    train_x, train_y, test_x, test_y = digits
    wide = [torch.cat([x, torch.full((len(x), 1), 3.3)], 1) for x in (train_x, test_x)]
    assert linear_probe(wide[0], train_y, wide[1], test_y, 10).top1 == linear_probe(*digits, num_classes=10).top1


def sklearn_validation(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The validation accuracies of k-NN and linear probe, by scikit-learn and a plain loop over the bank."""
    seen: dict[int, int] = {}
    held = np.zeros(len(y), dtype=bool)
    for i, label in enumerate(y.tolist()):
        seen[label] = seen.get(label, 0) + 1
        held[i] = seen[label] % 5 == 0
    labels, raw = y.numpy(), x.double().numpy()
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    knn = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine", algorithm="brute")
    std = raw.std(axis=0)
    z = (raw - raw.mean(axis=0)) / np.where(std == 0, np.inf, std)
    linear = [
        LogisticRegression(C=1 / (l2 * (~held).sum()), max_iter=5000, tol=1e-6).fit(z[~held], labels[~held])
        for l2 in PENALTIES
    ]
    return (
        100 * knn.fit(unit[~held], labels[~held]).score(unit[held], labels[held]),
        max(100 * fitted.score(z[held], labels[held]) for fitted in linear),
    )


def test_validation_metrics_equal_sklearn_on_the_held_out_fifth(digits: tuple[Tensor, ...]) -> None:
    train_x, train_y, test_x, test_y = (t[:600] for t in digits)
    metrics = evaluate_probes(train_x, train_y, test_x, test_y, 10)
    knn, linear = sklearn_validation(train_x, train_y)
    assert metrics["knn_val"] == pytest.approx(knn, abs=1e-9)
    one_image = 100 / 118
    assert abs(metrics["linear_val"] - linear) < 1.01 * one_image
    assert metrics["linear_val"] != metrics["linear"]


def test_the_test_split_has_no_part_in_the_validation_metrics(digits: tuple[Tensor, ...]) -> None:
    train_x, train_y, test_x, test_y = (t[:300] for t in digits)
    honest = evaluate_probes(train_x, train_y, test_x, test_y, 10)
    adverse = evaluate_probes(train_x, train_y, test_x.flip(1), (test_y + 1) % 10, 10)
    for name in ("knn_val", "linear_val", "linear_l2"):
        assert adverse[name] == honest[name]
    assert adverse["linear"] < 20 < honest["linear"]


def test_without_five_images_of_a_class_there_is_no_validation_metric(digits: tuple[Tensor, ...]) -> None:
    train_x, train_y, test_x, test_y = digits
    few = torch.cat([torch.nonzero(train_y == label)[:4, 0] for label in range(10)])
    metrics = evaluate_probes(train_x[few], train_y[few], test_x, test_y, 10)
    assert set(metrics) == {"knn", "linear", "linear_top5", "linear_l2"}


@pytest.mark.parametrize("k", [1, 5])
def test_top_k_equals_sklearn_to_the_last_digit(digits: tuple[Tensor, ...], k: int) -> None:
    train_x, train_y, test_x, test_y = digits
    weight = fit_logistic(train_x.double() / 16, train_y, 10, 1e-1)
    logits = _logits(test_x.double() / 16, weight)
    theirs = top_k_accuracy_score(test_y.numpy(), logits.numpy(), k=k, labels=range(10), normalize=False)
    assert top_k_accuracy(logits, test_y, k) == 100.0 * theirs / len(test_y)


def test_top_5_is_reported_beyond_five_classes(digits: tuple[Tensor, ...]) -> None:
    train_x, train_y, test_x, test_y = (t[:300] for t in digits)
    metrics = evaluate_probes(train_x, train_y, test_x, test_y, 10)
    assert metrics["linear_top5"] == linear_probe(train_x, train_y, test_x, test_y, 10).top5
    assert metrics["linear"] < metrics["linear_top5"] <= 100
    five = evaluate_probes(train_x[train_y < 5], train_y[train_y < 5], test_x[test_y < 5], test_y[test_y < 5], 5)
    assert "linear_top5" not in five
