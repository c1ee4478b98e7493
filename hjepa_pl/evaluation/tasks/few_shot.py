"""Classification from few labels, repeated over draws of them."""

import math

import torch
from scipy.stats import t as student
from torch import Tensor

from hjepa_pl.evaluation.base import Features
from hjepa_pl.evaluation.linear import fit_logistic, standardize, top_k_accuracy
from hjepa_pl.evaluation.tasks.base import Outcome, Task
from hjepa_pl.evaluation.threads import one_thread
from hjepa_pl.functional.stratify import rank_in_class, stratified
from hjepa_pl.types import ConfigError

SHOTS, SHOT_DRAWS = (1, 5, 10), 20
FRACTIONS, FRACTION_DRAWS = (0.01, 0.1), 5


class FewShot(Task):
    """Accuracy of logistic regression on 1, 5 and 10 labels of a class, and on 1 % and 10 % of all labels.

    Features are standardized over all training images, whose labels are not used for that; the penalty is
    scikit-learn's default (C = 1). Each figure is the mean over draws of the labels (20, or 5 for fractions), with the
    half-width of its 95 % interval (Student's t): how much the mean varies with the draws, for these test images.
    """

    title = "5-shot"

    def __call__(self, features: Features) -> Outcome:
        """Return `shot5`, `shot1`, `shot10`, `percent1`, `percent10`, each with `..._interval`.

        Ten shots, and a fraction of less than one image of a class, are left out where there are not as many.

        Raises:
            ConfigError: If a class has fewer than five training images.
        """
        x, y, test_x, test_y, num_classes = features
        dtype = torch.float64 if x.device.type == "cpu" else torch.float32
        x, test_x = standardize(x.to(dtype), test_x.to(dtype))
        smallest = int(rank_in_class(y)[1].min())
        if smallest < 5:
            raise ConfigError(
                f"The task few_shot needs five training images of each class, and one class has {smallest}; add "
                "images, raise max_train, or leave few_shot out of --tasks."
            )
        draws: dict[str, tuple[int | float, int]]
        draws = {f"shot{n}": (n, SHOT_DRAWS) for n in (5, *SHOTS) if n <= smallest}
        draws |= {f"percent{f:.0%}"[:-1]: (f, FRACTION_DRAWS) for f in FRACTIONS if f * smallest >= 1}
        metrics: dict[str, float] = {}
        with one_thread(when=x.device.type == "cpu"):
            for name, (amount, repeats) in draws.items():
                accuracy = [
                    _accuracy(x, y, test_x, test_y, num_classes, draw_labels(y, amount, self.seed, repeat))
                    for repeat in range(repeats)
                ]
                metrics[name], metrics[f"{name}_interval"] = mean_interval(torch.tensor(accuracy))
        return Outcome(metrics)


def draw_labels(y: Tensor, amount: int | float, seed: int, repeat: int) -> Tensor:
    """Return the indices of `amount` images of each class (int), or of that fraction of all, with equal proportions."""
    seed = seed * 1000 + repeat
    if isinstance(amount, float):
        return stratified(y.cpu(), round(amount * len(y)), seed).to(y.device)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(y.device)
    return order[rank_in_class(y[order])[0] < amount]


def mean_interval(values: Tensor) -> tuple[float, float]:
    """Return the mean of (R,) values and the half-width of its 95 % interval by Student's t.

    Example:
        >>> [round(x, 3) for x in mean_interval(torch.tensor([1.0, 2.0, 3.0]))]
        [2.0, 2.484]
    """
    quantile = float(student.ppf(0.975, len(values) - 1))
    return float(values.double().mean()), quantile * float(values.double().std()) / math.sqrt(len(values))


def _accuracy(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, num_classes: int, index: Tensor) -> float:
    weight = fit_logistic(x[index], y[index], num_classes, l2=1 / len(index))
    return top_k_accuracy(torch.addmm(weight[-1], test_x, weight[:-1]), test_y, 1)
