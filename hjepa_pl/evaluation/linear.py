"""Linear probe: multinomial logistic regression on frozen features, solved to convergence."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_stat_scores

from hjepa_pl.evaluation.base import VAL, Features, Probe
from hjepa_pl.evaluation.threads import one_thread
from hjepa_pl.functional.stratify import validation_split
from hjepa_pl.types import ConfigError

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Grid of L2 penalties, strongest first: each fit starts from the weights of the one before."""

_MIDDLE = 1e-2
_SEARCH_STEPS = 50
_FINAL_STEPS = 200
_SMALL = 10_000_000
"""Numbers of features x classes below which one CPU thread is fastest."""


class LinearResult(NamedTuple):
    """Result of the linear probe."""

    top1: float
    """Test accuracy in percent."""
    top5: float | None
    """Test top-5 accuracy in percent; None for five classes or fewer."""
    l2: float
    """Selected penalty (see `fit_logistic` for its scale)."""
    val: float | None
    """Accuracy in percent on the validation split, with that penalty; None without such a split."""


class LinearFit(NamedTuple):
    """A fitted linear probe, on the test images."""

    logits: Tensor
    """(M, num_classes) of the test images."""
    l2: float
    """Selected penalty (see `fit_logistic` for its scale)."""
    val: float | None
    """Accuracy in percent on the validation split, with that penalty; None without such a split."""


class LinearProbe(Probe):
    """Accuracy of `linear_probe`."""

    title = "linear"

    def __call__(self, features: Features) -> dict[str, float]:
        """Return the accuracies, top-5 with more than five classes, and the penalty."""
        result = linear_probe(*features)
        metrics = {"": result.top1, "l2": result.l2, "top5": result.top5, VAL: result.val}
        return {name: value for name, value in metrics.items() if value is not None}

    def extra_metrics(self, num_classes: int) -> tuple[str, ...]:
        """Return the penalty and, with more than five classes, the top-5 accuracy."""
        return ("l2", "top5") if num_classes > 5 else ("l2",)

    def note(self, metric: str, value: float) -> str | None:
        """Return a remark where the penalty is at an end of the grid: the accuracy is then a lower bound."""
        if metric != "l2" or value not in (min(PENALTIES), max(PENALTIES)):
            return None
        end = "weakest" if value == min(PENALTIES) else "strongest"
        return f"the {end} penalty of the grid; one beyond it might be better, so the accuracy is a lower bound."


# scikit-learn's LogisticRegression takes about 0.6 of this solver's CPU time (tol 1e-6, digits, 1200 x 192, 2026-11-21:
# 0.41 s against 0.68 s) but chooses other penalties, which moves accuracies by up to 0.5 points, and has no GPU.
def fit_logistic(
    x: Tensor, y: Tensor, num_classes: int, l2: float, start: Tensor | None = None, max_iter: int = _FINAL_STEPS
) -> Tensor:
    """Minimize mean cross-entropy + l2 / 2 * |W|^2 by L-BFGS; the bias is not penalized.

    scikit-learn's `LogisticRegression(C=1 / (l2 * N))` has the same optimum. Deterministic: the weights start from zero
    or from `start`, and every step uses all features.

    Args:
        x: (N, D) features, standardized.
        y: (N,) int64 labels.
        num_classes: Number of classes.
        l2: Penalty.
        start: (D + 1, classes) weights to start from.
        max_iter: Most L-BFGS iterations.

    Returns:
        (D + 1, classes) weights; the last row is the bias.
    """
    if l2 < 0:
        raise ConfigError(f"invalid `l2={l2}`: must be a number >= 0.")
    weight = x.new_zeros(x.shape[1] + 1, num_classes) if start is None else start
    # Preconditioner: each row in units of the loss's curvature along it (a quarter to a tenth of the feature's power,
    # plus the penalty). The optimum is the same; in the basis of `_rotate` it takes tens of steps, not hundreds.
    curve = (num_classes - 1) / num_classes**2
    power = torch.cat([curve * x.square().mean(0) + l2, x.new_full((1,), curve)])
    unit = power.clamp_min(1e-12).rsqrt()[:, None]
    scaled = (weight / unit).requires_grad_(False)
    target = F.one_hot(y, num_classes).to(x.dtype)
    optimizer = torch.optim.LBFGS(
        [scaled], max_iter=max_iter, history_size=20, tolerance_grad=1e-6, tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        # The gradient in closed form: half the time of autograd, and it works under no_grad and inference_mode.
        weight = scaled * unit
        log_p = torch.log_softmax(_logits(x, weight), dim=1)
        error = (log_p.exp() - target) / len(x)
        scaled.grad = unit * torch.cat([x.T @ error + l2 * weight[:-1], error.sum(0, keepdim=True)])
        return -(log_p * target).sum() / len(x) + 0.5 * l2 * weight[:-1].square().sum()

    with torch.no_grad():
        optimizer.step(closure)
    return scaled * unit


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> LinearResult:
    """Fit a multinomial logistic regression on training features, and measure its accuracy on test features.

    The arguments are those of `fit_linear`.

    Returns:
        Accuracies and the selected penalty.

    Raises:
        ConfigError: If there are no penalties.

    Example:
        >>> x, y = torch.tensor([[0.0, 0.0], [0.0, 1.0], [5.0, 0.0], [5.0, 1.0]]), torch.tensor([0, 0, 1, 1])
        >>> linear_probe(x, y, x + 0.1, y, num_classes=2).top1
        100.0
    """
    logits, l2, val = fit_linear(train_x, train_y, test_x, num_classes, penalties)
    top5 = top_k_accuracy(logits, test_y, 5) if num_classes > 5 else None
    return LinearResult(top_k_accuracy(logits, test_y, 1), top5, l2, val)


def fit_linear(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, num_classes: int, penalties: Sequence[float] = PENALTIES
) -> LinearFit:
    """Fit a multinomial logistic regression on training features, and classify test features.

    Features are standardized by the training mean and standard deviation. Each penalty is fitted on four fifths of the
    training images; the one with the best accuracy on the validation split (`validation_split`; of equals, the one with
    the lowest cross-entropy) is fitted again on all of them. The test images take no part in the choice. If no class
    has five images, there is no validation split and the penalty nearest to 0.01 is used. On the CPU everything is
    computed in float64, elsewhere in float32 (MPS has no float64).

    Args:
        train_x: (N, D) features.
        train_y: (N,) int64 labels.
        test_x: (M, D) features, on the same device.
        num_classes: Number of classes.
        penalties: L2 penalties to choose from.

    Returns:
        Logits of the test features, the selected penalty, and its validation accuracy.

    Raises:
        ConfigError: If there are no penalties.
    """
    if not penalties:
        raise ConfigError("invalid `penalties=[]`: must hold a number >= 0, such as 0.01.")
    dtype = torch.float64 if train_x.device.type == "cpu" else torch.float32
    small = train_x.device.type == "cpu" and train_x.numel() * num_classes < _SMALL
    with one_thread(when=small):
        train_x, test_x = _rotate(*standardize(train_x.to(dtype), test_x.to(dtype)))
        l2, start, val = _choose(train_x, train_y, num_classes, penalties)
        weight = fit_logistic(train_x, train_y, num_classes, l2, start)
    return LinearFit(_logits(test_x, weight), l2, val)


def _choose(
    x: Tensor, y: Tensor, num_classes: int, penalties: Sequence[float]
) -> tuple[float, Tensor | None, float | None]:
    """Return the penalty with the best held-out accuracy, its weights to start the last fit from, and the accuracy."""
    held = validation_split(y)
    if not held.any():
        return min(penalties, key=lambda p: abs(p - _MIDDLE)), None, None
    fit_x, fit_y, held_x, held_y = x[~held], y[~held], x[held], y[held]
    scores: list[tuple[float, float, float, Tensor]] = []
    weight: Tensor | None = None
    for l2 in sorted(penalties, reverse=True):
        weight = fit_logistic(fit_x, fit_y, num_classes, l2, weight, _SEARCH_STEPS)
        logits = _logits(held_x, weight)
        scores.append((top_k_accuracy(logits, held_y, 1), -F.cross_entropy(logits, held_y).item(), l2, weight))
    best = max(scores, key=lambda s: s[:2])
    return best[2], best[3], best[0]


def standardize(train_x: Tensor, test_x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, D) and (M, D) features in units of the training features' mean and standard deviation."""
    mean, std = train_x.mean(0), train_x.std(0, correction=0)
    # A constant feature (a white corner of a scan) becomes zero.
    std = torch.where(std > 1e-7 * mean.abs().clamp_min(1e-7), std, torch.inf)
    return (train_x - mean) / std, (test_x - mean) / std


def _rotate(train_x: Tensor, test_x: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the features to the principal axes of the training features, dropping axes without variance.

    This changes neither the penalty nor the optimum, which has no weight on the dropped axes.
    """
    if len(train_x) >= train_x.shape[1]:
        values, axes = torch.linalg.eigh(train_x.T @ train_x)
    else:
        values, small = torch.linalg.eigh(train_x @ train_x.T)
        axes = F.normalize(train_x.T @ small, dim=0)
    axes = axes[:, values > 10 * torch.finfo(values.dtype).eps * len(values) * values[-1]]
    return train_x @ axes, test_x @ axes


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    return torch.addmm(weight[-1], x, weight[:-1])


def top_k_accuracy(logits: Tensor, y: Tensor, k: int) -> float:
    """Return the percentage of images whose class is among the k largest logits.

    Args:
        logits: (N, classes).
        y: (N,) int64 labels.
        k: At most the number of classes.
    """
    # Counts, not torchmetrics' accuracy: that one is rounded to float32.
    scores = multiclass_stat_scores(logits, y, logits.shape[1], average="micro", top_k=k)
    hits, images = scores[0].item(), scores[4].item()
    return 100.0 * hits / images
