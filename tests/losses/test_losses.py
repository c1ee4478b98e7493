import math
import re

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hjepa_pl.functional.counters import hash_int, normal
from hjepa_pl.losses import REGULARIZERS, NTXent, SIGReg, VICReg, center_positions, epps_pulley, prediction_loss
from hjepa_pl.losses.prediction import prediction_by_image
from hjepa_pl.losses.regularize import read_regularizer, regularize
from hjepa_pl.losses.sigreg import sigreg
from hjepa_pl.losses.vicreg import covariance_term, invariance_term, variance_term
from hjepa_pl.tools.step_cost import Operations
from hjepa_pl.types import ConfigError


def test_prediction_losses_equal_float64_formulas() -> None:
    p, t = torch.randn(4, 5, 6, dtype=torch.float64) * 2, torch.randn(4, 5, 6, dtype=torch.float64)
    d = (p - t).numpy()
    smooth = np.where(np.abs(d) < 1, 0.5 * d**2, np.abs(d) - 0.5).mean()
    cosine = 1 - np.mean((p * t).sum(-1).numpy() / np.linalg.norm(p, axis=-1) / np.linalg.norm(t, axis=-1))
    for kind, expected in (("smooth_l1", smooth), ("mse", (d**2).mean()), ("cosine", cosine)):
        assert float(prediction_loss(p, t, kind)) == pytest.approx(expected, abs=1e-6)
        one_by_one = [float(prediction_loss(p[i], t[i], kind)) for i in range(4)]
        assert prediction_by_image(p, t, kind).tolist() == pytest.approx(one_by_one, rel=1e-6)


def slow_epps_pulley(x: np.ndarray, knots: int = 17, t_max: float = 3.0) -> float:
    """The quadrature of LeJEPA's equation, in float64 and in loops."""
    t = np.linspace(0, t_max, knots)
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
    assert torch.autograd.gradcheck(epps_pulley, x[:5, :3].double().requires_grad_(True))


def test_t_max_and_knots_change_the_quadrature_and_nothing_else() -> None:
    x = torch.randn(40, 1) * 1.3 + 0.2
    values = {}
    for t_max, knots in ((3.0, 17), (1.0, 17), (5.0, 17), (5.0, 6)):
        values[t_max, knots] = float(epps_pulley(x, knots, t_max))
        slow = slow_epps_pulley(x[:, 0].double().numpy(), knots, t_max)
        assert values[t_max, knots] == pytest.approx(slow, abs=1e-6)
        config = SIGReg(knots=knots, t_max=t_max)
        # One column has one direction, and the statistic of -x is that of x.
        assert float(regularize(config, x[None], None, 1, key=0)) == pytest.approx(slow, abs=1e-6)
    assert len({round(v, 5) for v in values.values()}) == 4


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
    assert float(VICReg()(views)) == pytest.approx(terms, rel=1e-6)


def test_vicreg_equals_the_papers_pseudo_code_in_float64() -> None:
    """Algorithm 1 of the appendix, its variance and covariance averaged over views instead of summed."""
    views = 0.7 * torch.randn(3, 6, 5, dtype=torch.float64) + 0.3
    z, (v, b, d) = views.numpy(), views.shape
    spread = []
    for view in z:
        hinge = np.mean([max(0.0, 1 - math.sqrt(np.var(view[:, k], ddof=1) + 1e-4)) for k in range(d)])
        off = sum(np.cov(view.T)[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
        spread.append(25 * hinge + off)

    def distance(pairs) -> float:
        return float(np.mean([(z[i, n] - z[j, n]) @ (z[i, n] - z[j, n]) / d for i, j in pairs for n in range(b)]))

    all_pairs = [(i, j) for i in range(v) for j in range(i + 1, v)]
    assert float(VICReg()(views)) == pytest.approx(25 * distance(all_pairs) + np.mean(spread), abs=1e-6)
    assert float(invariance_term(views, 2)) == pytest.approx(distance([(0, 2), (1, 2)]), abs=1e-6)
    assert float(VICReg()(views, partial=2)) == pytest.approx(
        25 * distance([(0, 2), (1, 2)]) + np.mean(spread), abs=1e-6
    )
    assert torch.autograd.gradcheck(VICReg(), views.requires_grad_(True))


def test_sigreg_of_many_tokens_holds_few_angles_at_a_time() -> None:
    """256 images of 68 tokens have 76 million angles, 303 MB each time that they are kept."""
    with FakeTensorMode():
        x = torch.empty(256 * 68, 192, requires_grad=True)
        with Operations([x]) as counted:
            sigreg(x, 1).backward()
    assert counted.peak < 128 * 2**20


def test_sigreg_in_parts_is_sigreg_at_once(monkeypatch) -> None:
    x = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    found = []
    for at_once in (2**22, 40 * 17 * 5):  # of 32 directions, all or five at a time
        monkeypatch.setattr("hjepa_pl.losses.sigreg._MAX_ANGLES", at_once)
        value = sigreg(x, 9, 32)
        found.append((value, torch.autograd.grad(value, x)[0]))
    torch.testing.assert_close(found[0], found[1], atol=1e-14, rtol=0)


def position_only(images: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.randn(1, 16, 32)
    return codes.expand(images, -1, -1), torch.arange(16).expand(images, -1)


@pytest.mark.parametrize("kind", ["sigreg", "vicreg"])
def test_the_token_stream_sees_position_only_collapse(kind) -> None:
    """Flattened, a code of positions passes for a Gaussian; compared between images at a position, it does not."""
    tokens, index = position_only()
    healthy = torch.randn(64, 16, 32)
    config = REGULARIZERS[kind](stream="tokens")
    bad = float(regularize(config, tokens, index, 16, key=1))
    good = float(regularize(config, healthy, index, 16, key=1))
    total = float(regularize(config, torch.zeros(64, 16, 32), index, 16, key=1))
    assert good < 0.1 * bad
    assert bad == pytest.approx(total, rel=1e-3)  # as bad as a total collapse


def test_centring_keeps_unit_variance_and_leaves_lone_tokens_out() -> None:
    tokens, index = torch.randn(3, 40, 32), torch.stack([torch.randperm(64)[:40] for _ in range(3)])
    centred, valid = center_positions(tokens, index, 64)
    counts = torch.bincount(index.flatten(), minlength=64)
    torch.testing.assert_close(valid, (counts[index.flatten()] > 1).float(), rtol=0, atol=0)
    assert float(centred[valid.bool()].var()) == pytest.approx(1.0, rel=0.1)
    assert not centred[~valid.bool()].any()


def test_centring_counts_an_image_once_at_a_position() -> None:
    """Target blocks overlap: a position that one image holds twice is no comparison between images."""
    tokens, index = torch.randn(3, 4, 5), torch.tensor([[0, 1, 1, 2], [0, 3, 4, 0], [5, 5, 5, 1]])
    once, valid = center_positions(tokens, index, 9)
    expected = shared_positions(tokens, index)
    torch.testing.assert_close(once[valid.bool()], expected, atol=1e-6, rtol=1e-6)
    assert len(expected) == 4  # positions 0 and 1, two images each
    assert not once[~valid.bool()].any()
    leaf = tokens.requires_grad_(True)
    center_positions(leaf, index, 9)[0].square().sum().backward()
    assert leaf.grad.isfinite().all()


def shared_positions(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The centred tokens that two images or more have at a position, row by row, an image's first only."""
    first = torch.tensor([[p not in row[:k] for k, p in enumerate(row)] for row in index.tolist()])
    rows = []
    for i in range(len(index)):
        for k in range(index.shape[1]):
            same = tokens[first & (index == index[i, k])]
            if first[i, k] and len(same) > 1:
                rows.append((tokens[i, k] - same.mean(0)) * math.sqrt(len(same) / (len(same) - 1)))
    return torch.stack(rows)


def test_terms_of_tokens_equal_those_of_the_rows_that_count_in_float64() -> None:
    """Rows that do not count have no share in any mean, spectrum or covariance, nor a gradient."""
    index = torch.stack([torch.randint(0, 30, (12,)) for _ in range(5)])
    tokens = (0.8 * torch.randn(5, 12, 6, dtype=torch.float64) + 0.1).requires_grad_(True)
    rows, valid = center_positions(tokens, index, 30)
    kept = shared_positions(tokens, index)
    assert 0 < len(kept) == int(valid.sum()) < len(rows)
    assert not rows[valid == 0].any()
    junk = torch.where(valid[:, None] > 0, rows, 7.0)  # what does not count may hold anything
    for term in (lambda x, **v: sigreg(x, 3, 32, **v), lambda x, **v: VICReg()(x[None], **v)):
        slow = term(kept)
        grad = torch.autograd.grad(slow, tokens, retain_graph=True)[0]
        for given in (rows, junk):
            value = term(given, valid=valid)
            assert abs(value.item() - slow.item()) < 1e-12
            got = torch.autograd.grad(value, tokens, retain_graph=True)[0]
            torch.testing.assert_close(got, grad, atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(lambda x: epps_pulley(x, valid=valid), junk[:, :2].detach().requires_grad_(True))


@pytest.mark.parametrize("kind", ["sigreg", "vicreg"])
def test_regularised_tokens_have_the_same_shapes_wherever_they_are(kind) -> None:
    """Without storage there are no positions to look at: a shape that depended on them would raise."""
    config = REGULARIZERS[kind](stream="tokens")
    with FakeTensorMode():
        tokens = torch.empty(4, 6, 8, requires_grad=True)
        regularize(config, tokens, torch.zeros(4, 6, dtype=torch.int64), 16, key=0).backward()
        assert tokens.grad.shape == tokens.shape


@pytest.mark.parametrize("kind", ["sigreg", "vicreg"])
def test_tokens_without_a_shared_position_say_nothing_and_are_finite(kind) -> None:
    config = REGULARIZERS[kind](stream="last_c2")
    tokens = torch.randn(2, 1, 8, requires_grad=True)
    value = regularize(config, tokens, torch.tensor([[0], [3]]), 4, key=0)
    value.backward()
    assert float(value.detach()) == 0
    assert not tokens.grad.any()


def test_a_levels_predictions_are_compared_as_tokens_are() -> None:
    tokens, index = torch.randn(6, 4, 8), torch.stack([torch.randperm(5)[:4] for _ in range(6)])
    for kind in ("sigreg", "vicreg"):
        values = [
            regularize(REGULARIZERS[kind](stream=stream), tokens, index, 5, key=2)
            for stream in ("tokens", "last_c1", "b4_c12")
        ]
        assert values[0] == values[1] == values[2] > 0


def test_directions_change_with_the_step_and_not_otherwise() -> None:
    x = torch.randn(1, 16, 8)
    config = SIGReg(num_slices=8)
    values = [float(regularize(config, x, None, 1, key=hash_int(0, step))) for step in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


POSITIVE = "must be a number > 0"
NO_EFFECT = "has no effect with regularizers.kind="


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "sigreg", "weight": -1.0}, f"invalid `regularizers.weight=-1`: {POSITIVE}; remove the term"),
        ({"kind": "sigreg", "weight": 0.0}, f"invalid `regularizers.weight=0`: {POSITIVE}; remove the term to turn it"),
        ({"kind": "ntxent", "weight": math.nan}, f"invalid `regularizers.weight=nan`: {POSITIVE}"),
        ({"kind": "vicreg", "weight": math.inf}, f"invalid `regularizers.weight=inf`: {POSITIVE}"),
        ({"kind": "sigreg", "variance": 1.0}, f"invalid `regularizers.variance=1`: {NO_EFFECT}sigreg; remove it."),
        ({"kind": "vicreg", "num_slices": 8}, f"invalid `regularizers.num_slices=8`: {NO_EFFECT}vicreg"),
        ({"kind": "vicreg", "t_max": 3.0}, f"invalid `regularizers.t_max=3`: {NO_EFFECT}vicreg"),
        ({"kind": "sigreg", "temperature": 0.1}, f"invalid `regularizers.temperature=0.1`: {NO_EFFECT}sigreg"),
        ({"kind": "ntxent", "invariance": 1.0}, f"invalid `regularizers.invariance=1`: {NO_EFFECT}ntxent"),
        (
            {"kind": "vicreg", "stream": "tokens", "invariance": 1.0},
            "invalid `regularizers.invariance=1`: has no effect with regularizers.stream=tokens, which has one view",
        ),
        (
            {"kind": "vicreg", "stream": "b2_c1", "invariance": 0.0},
            "invalid `regularizers.invariance=0`: has no effect with regularizers.stream=b2_c1, which has one view",
        ),
        ({"kind": "sigreg", "t_max": 0.5}, "invalid `regularizers.t_max=0.5`: must be a number in [1, 10]; smaller"),
        ({"kind": "sigreg", "knots": 1}, "invalid `regularizers.knots=1`: must be a whole number >= 5."),
        ({"kind": "sigreg", "num_slices": 0}, "invalid `regularizers.num_slices=0`: must be a whole number >= 1."),
        ({"kind": "vicreg", "variance": math.nan}, f"invalid `regularizers.variance=nan`: {POSITIVE}"),
        ({"kind": "vicreg", "covariance": math.inf}, "invalid `regularizers.covariance=inf`: must be a number >= 0."),
        ({"kind": "vicreg", "variance": 0.0}, f"invalid `regularizers.variance=0`: {POSITIVE}; at 0 nothing prevents"),
        ({"kind": "sigreg", "t_max": 0.0}, "invalid `regularizers.t_max=0`: must be a number in [1, 10]"),
        ({"kind": "sigreg", "t_max": math.inf}, "invalid `regularizers.t_max=inf`: must be a number in [1, 10]"),
        ({"kind": "ntxent", "temperature": 0.0}, f"invalid `regularizers.temperature=0`: {POSITIVE}."),
        ({"kind": "ntxent", "temperature": math.nan}, f"invalid `regularizers.temperature=nan`: {POSITIVE}."),
        ({"kind": "ntxent", "hard_negatives": 0.0}, f"invalid `regularizers.hard_negatives=0`: {POSITIVE} or null."),
        ({"kind": "ntxent", "hard_negatives": -1.0}, f"invalid `regularizers.hard_negatives=-1`: {POSITIVE} or null."),
        (
            {"kind": "ntxent", "stream": "tokens"},
            "invalid `regularizers.kind=ntxent`: compares views, and stream tokens has one; set stream to image",
        ),
        (
            {"kind": "ntxent", "stream": "last_c1"},
            "invalid `regularizers.kind=ntxent`: compares views, and stream last_c1 has one; set stream to image",
        ),
        (
            {"kind": "sigreg", "stream": "level1"},
            "invalid `regularizers.stream=level1`: must be image, tokens or the name of a token level, such as last_c1",
        ),
        ({"kind": "sigreg", "stream": "xlast_c1"}, "invalid `regularizers.stream=xlast_c1`: must be image, tokens or"),
        ({"kind": "sigreg", "stream": "last_cimage"}, "invalid `regularizers.stream=last_cimage`: must be image,"),
        (
            {"kind": "sigrag"},
            "invalid `regularizers.kind=sigrag`: must be sigreg, vicreg or ntxent, or the import path of your own; "
            "did you mean sigreg?",
        ),
        ({"kind": "os.path.join"}, "invalid `regularizers.kind=os.path.join`: must be a subclass of hjepa_pl.losses."),
        ({"kind": "no.such.Loss"}, "invalid `regularizers.kind=no.such.Loss`: cannot be imported (No module named"),
        ({"kind": "ntxent", "temperature": "low"}, "invalid `regularizers.temperature=low`: must be a number > 0."),
        ({"kind": "sigreg", "stream": 3}, "invalid `regularizers.stream=3`: must be text."),
        ({"kind": "sigreg", "num_slice": 3}, "regularizers does not accept 'num_slice'; did you mean num_slices?"),
        ({"kind": "sigreg", "depth": 3}, "regularizers does not accept 'depth'; its keys are stream, weight, num_sli"),
        ({"stream": "image"}, "regularizers lacks the key 'kind'"),
        ("sigreg", "invalid `regularizers=sigreg`: must be a mapping; write {kind: NAME}."),
    ],
)
def test_bad_regularizers_are_rejected_in_one_sentence(settings, message) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as rejected:
        read_regularizer(settings)
    assert "\n" not in str(rejected.value)


def test_names_weights_and_min_images() -> None:
    terms = [read_regularizer({"kind": kind}) for kind in ("sigreg", "vicreg", "ntxent")]
    assert [type(t) for t in terms] == list(REGULARIZERS.values())
    assert [t.name for t in terms] == ["sigreg_image", "vicreg_image", "ntxent_image"]
    assert [t.weight for t in terms] == [5.0, 1.0, 0.1]
    assert read_regularizer(terms[0]) is terms[0]
    assert VICReg(stream="b4_c1").name == "vicreg_b4_c1"
    for term in terms:  # two images are enough, and one is not
        views = torch.randn(2, term.min_images, 8, requires_grad=True)
        regularize(term, views, None, 1, key=0).backward()
        assert views.grad.isfinite().all()
        assert views.grad.any()


def test_called_directly_they_take_one_view_or_several() -> None:
    z = torch.randn(2, 16, 8)
    for term in (SIGReg(num_slices=8), VICReg(invariance=0.0)):
        assert term(z).item() == pytest.approx((term(z[0]) + term(z[1])).item() / 2)
    assert SIGReg(num_slices=8)(z, key=1) != SIGReg(num_slices=8)(z, key=2)
    with pytest.raises(ValueError, match=re.escape("must be (V, B, D) or (B, D), got shape (8,)")):
        SIGReg()(z[0, 0])
    with pytest.raises(ValueError, match=re.escape("needs (V, B, D) with V >= 2, got (16, 8)")):
        NTXent()(z[0])
