"""Linear probe by the protocol's rule: logistic regression to convergence, or a grid of SGD heads in one pass."""

from hjepa_pl.evaluation.base import Features
from hjepa_pl.evaluation.linear import fit_linear, top_k_accuracy
from hjepa_pl.evaluation.sgd import fit_sgd_heads
from hjepa_pl.evaluation.tasks.base import Outcome, Task


class Linear(Task):
    """Accuracy of a linear classifier, with the hyperparameters that the validation split chooses."""

    title = "linear"

    def __call__(self, features: Features) -> Outcome:
        """Return accuracy, top-5 accuracy with more than five classes, validation accuracy and hyperparameters."""
        x, y, test_x, test_y, num_classes = features
        chosen: dict[str, float]
        if self.protocol.linear == "logistic":
            logits, l2, val = fit_linear(x, y, test_x, num_classes)
            chosen = {"l2": l2}
        else:
            grid = [(rate, decay) for rate in self.protocol.rates for decay in self.protocol.decays]
            logits, (rate, decay), val = fit_sgd_heads(
                x, y, test_x, num_classes, grid, self.protocol.epochs, seed=self.seed
            )
            chosen = {"lr": rate, "weight_decay": decay}
        metrics = {"accuracy": top_k_accuracy(logits, test_y, 1)}
        if num_classes > 5:
            metrics["top5"] = top_k_accuracy(logits, test_y, 5)
        if val is not None:
            metrics["validation"] = val
        return Outcome(metrics | chosen, logits.softmax(dim=1))
