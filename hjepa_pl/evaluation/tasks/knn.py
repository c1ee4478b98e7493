"""Weighted k-NN with several numbers of neighbors."""

from hjepa_pl.evaluation.base import Features
from hjepa_pl.evaluation.knn import knn_votes
from hjepa_pl.evaluation.tasks.base import Outcome, Task
from hjepa_pl.types import ConfigError

KS = (10, 20, 100, 200)
"""Numbers of neighbors that DINO reports (https://arxiv.org/abs/2104.14294, `eval_knn.py`)."""


class KNN(Task):
    """Accuracy of `knn_predict` with the protocol's k, and with each of `KS` that the training images suffice for."""

    title = "k-NN"

    def __call__(self, features: Features) -> Outcome:
        """Return the accuracies and, for the protocol's k, the votes.

        Raises:
            ConfigError: If there are fewer training images than the protocol's k.
        """
        x, y, test_x, test_y, num_classes = features
        chosen = self.protocol.neighbors
        if len(x) < chosen:
            raise ConfigError(
                f"The task knn needs {chosen} training images, one for each neighbor, and there are {len(x)}; add "
                "images, raise max_train, or leave knn out of --tasks."
            )
        ks = sorted({k for k in KS if k <= len(x)} | {chosen})
        votes = knn_votes(x, y, test_x, num_classes, ks, self.protocol.temperature)
        accuracy = {k: 100.0 * (votes[k].argmax(dim=1) == test_y).double().mean().item() for k in ks}
        return Outcome({"accuracy": accuracy[chosen]} | {f"k{k}": accuracy[k] for k in ks}, votes[chosen])
