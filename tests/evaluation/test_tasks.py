"""Tasks of `hjepa eval` against independent computations."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from hjepa_pl.evaluation.base import Features
from hjepa_pl.evaluation.geometry import alignment, dead_dimensions, isotropy, linear_cka, uniformity
from hjepa_pl.evaluation.intervals import accuracy_interval, difference_interval
from hjepa_pl.evaluation.knn import knn_votes
from hjepa_pl.evaluation.protocols import PROTOCOLS
from hjepa_pl.evaluation.sgd import fit_sgd_heads
from hjepa_pl.evaluation.tasks import TASKS
from hjepa_pl.evaluation.tasks.few_shot import draw_labels, mean_interval
from hjepa_pl.evaluation.tasks.retrieval import retrieval
from hjepa_pl.types import ConfigError

OURS = PROTOCOLS["ours"]


@pytest.fixture(scope="module")
def digits() -> Features:
    """The first 800 scans to train on, the next 400 to test on."""
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    return Features(x[:800], y[:800], x[800:1200], y[800:1200], 10)


def test_votes_equal_scikit_learns(digits: Features) -> None:
    x, y, test_x, test_y, _ = digits
    votes = knn_votes(x, y, test_x, 10, (5, 20), 0.07)
    for k in (5, 20):
        theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).fit(x, y)
        assert np.allclose(votes[k], theirs.predict_proba(test_x), atol=1e-4)
    found = TASKS["knn"](OURS, 0)(digits).metrics
    assert found["accuracy"] == found["k20"] == 100.0 * (votes[20].argmax(1) == test_y).double().mean()
    assert found["k200"] < found["k10"]  # on the digits: k acts


def test_linear_is_within_a_fraction_of_a_point_of_scikit_learns(digits: Features) -> None:
    x, y, test_x, test_y, _ = digits
    outcome = TASKS["linear"](OURS, 0)(digits)
    scaler = StandardScaler().fit(x)
    theirs = LogisticRegression(C=1 / (outcome.metrics["l2"] * len(x)), max_iter=3000, tol=1e-8)
    theirs.fit(scaler.transform(x), y)
    accuracy = 100 * theirs.score(scaler.transform(test_x), test_y)
    assert outcome.metrics["accuracy"] == pytest.approx(accuracy, abs=0.3)
    assert outcome.probabilities is not None
    assert np.allclose(outcome.probabilities, theirs.predict_proba(scaler.transform(test_x)), atol=1e-2)


def test_sgd_heads_are_trained_as_each_alone_and_chosen_by_validation(digits: Features) -> None:
    x, y, test_x, test_y, _ = digits
    x, test_x = x / 16, test_x / 16
    grid = [(1e-6, 0.0), (0.5, 0.0), (0.5, 10.0)]
    logits, chosen, val = fit_sgd_heads(x, y, test_x, 10, grid, epochs=30)
    assert chosen == (0.5, 0.0)
    assert val is not None
    assert val > 90
    alone, _, none = fit_sgd_heads(x, y, test_x, 10, [chosen], epochs=30)
    assert none is None
    assert torch.equal(logits, alone)
    assert (alone.argmax(1) == test_y).double().mean() > 0.9


def test_one_sgd_head_equals_torchs_sgd(digits: Features) -> None:
    x, y = digits.train_x[:512] / 16, digits.train_y[:512]
    logits, _, _ = fit_sgd_heads(x, y, digits.test_x / 16, 10, [(0.3, 0.01)], epochs=2, seed=3)
    layer = torch.nn.Linear(64, 10)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": 0.01}, {"params": [layer.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.3, momentum=0.9)
    generator, step = torch.Generator().manual_seed(3), 0
    for _ in range(2):
        for rows in torch.randperm(512, generator=generator).split(256):
            for group in optimizer.param_groups:
                group["lr"] = 0.3 * 0.5 * (1 + np.cos(np.pi * step / 4))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(x[rows]), y[rows]).backward()
            optimizer.step()
            step += 1
    assert torch.allclose(logits, layer(digits.test_x / 16), atol=1e-4)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_protocol_acts(digits: Features, name: str) -> None:
    protocol = PROTOCOLS[name]._replace(epochs=min(PROTOCOLS[name].epochs, 3))
    linear, knn = (TASKS[task](protocol, 0)(digits).metrics for task in ("linear", "knn"))
    assert ("lr" in linear) == (protocol.linear == "sgd") != ("l2" in linear)
    assert knn["accuracy"] == knn[f"k{protocol.neighbors}"]


def test_retrieval_equals_scikit_learns_average_precision(digits: Features) -> None:
    x, y, test_x, test_y, _ = digits
    found = retrieval(x, y, test_x[:50], test_y[:50])
    unit = torch.nn.functional.normalize
    similarity = unit(test_x[:50], dim=1) @ unit(x, dim=1).T
    theirs = [average_precision_score(y == label, row) for row, label in zip(similarity, test_y, strict=False)]
    assert found["map"] == pytest.approx(100 * np.mean(theirs), abs=1e-3)
    nearest = y[similarity.topk(5, dim=1).indices]
    assert found["recall1"] == pytest.approx(100 * (nearest[:, 0] == test_y[:50]).double().mean())
    assert found["recall5"] == pytest.approx(100 * (nearest == test_y[:50, None]).any(1).double().mean())


def test_queries_of_a_class_that_the_gallery_lacks_are_left_out() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = retrieval(x, torch.tensor([0, 0]), torch.cat([x, x]), torch.tensor([0, 0, 1, 1]))
    assert found["map"] == 100.0


def test_few_shot_draws_balanced_labels_and_improves_with_them(digits: Features) -> None:
    y = digits.train_y
    for amount in (1, 5):
        counts = y[draw_labels(y, amount, 0, 0)].bincount()
        assert counts.tolist() == [amount] * 10
    assert len(draw_labels(y, 0.1, 0, 0)) == 80
    assert not torch.equal(draw_labels(y, 5, 0, 0), draw_labels(y, 5, 0, 1))
    found = TASKS["few_shot"](OURS, 0)(digits).metrics
    assert next(iter(found)) == "shot5"
    assert found["shot1"] < found["shot5"] < found["shot10"]
    assert found["percent10"] > 80
    few = digits._replace(train_x=digits.train_x[draw_labels(y, 4, 0, 0)], train_y=y[draw_labels(y, 4, 0, 0)])
    with pytest.raises(ConfigError, match="few_shot needs five training images of each class, and one class has 4"):
        TASKS["few_shot"](OURS, 0)(few)


def test_mean_interval_covers_the_mean_of_gaussians() -> None:
    values = torch.randn(4000, 20, generator=torch.Generator().manual_seed(0)) * 3 + 7
    covered = sum(abs(mean - 7) <= half for mean, half in map(mean_interval, values)) / 4000
    assert 0.94 < covered < 0.96


def test_bootstrap_intervals_cover_and_pairing_narrows() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(400, 500, generator=generator) < 0.8
    inside = sum(low <= 80 <= high for low, high in (accuracy_interval(row) for row in rows)) / 400
    assert 0.91 < inside < 0.98
    hard = torch.rand(2000, generator=generator)
    a, b = hard < 0.80, hard < 0.78
    low, high = difference_interval(a, b)
    assert low < 2 < high
    assert high - low < 2  # unpaired it would be 5
    assert low > 0


def test_geometry_by_hand_and_at_its_limits() -> None:
    noise = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0))
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0.0)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(opposite) == pytest.approx(-8.0)
    assert uniformity(noise) < -3
    assert alignment(noise[:, None].repeat(1, 3, 1)) == pytest.approx(0.0, abs=1e-9)
    assert alignment(torch.stack([opposite, -opposite], dim=1)) == pytest.approx(4.0)
    assert isotropy(noise) > 0.9 > 0.5 > isotropy(noise + 10)
    assert dead_dimensions(torch.cat([noise, torch.zeros(1000, 16)], dim=1)) == 50.0
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]
    assert linear_cka(noise, 3 * noise @ rotation + 1) == pytest.approx(1.0, abs=1e-6)
    assert linear_cka(noise, torch.randn(1000, 16, generator=torch.Generator().manual_seed(2))) < 0.05


def test_quality_tells_a_collapsed_code_from_noise() -> None:
    noise = torch.randn(600, 16, generator=torch.Generator().manual_seed(0))
    line = noise[:, :1] * torch.ones(16)
    y = torch.arange(600) % 2
    good, bad = (TASKS["quality"](OURS, 0)(Features(x, y, x, y, 2)).metrics for x in (noise, line))
    assert good["effective_rank"] > 15 > 1.1 > bad["effective_rank"]
    assert good["rankme"] > 15 > 1.1 > bad["rankme"]
    assert good["width"] == 16


def test_more_neighbors_than_images_is_one_sentence(digits: Features) -> None:
    few = digits._replace(train_x=digits.train_x[:15], train_y=digits.train_y[:15])
    with pytest.raises(ConfigError, match="knn needs 20 training images, one for each neighbor, and there are 15"):
        TASKS["knn"](OURS, 0)(few)
