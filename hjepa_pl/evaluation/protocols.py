"""Evaluation protocols by name: this package's own, and those of other projects."""

from typing import Literal, NamedTuple

from hjepa_pl.utils.registry import Registry


class Protocol(NamedTuple):
    """How features are judged, so that a number can be set beside one that was measured in the same way."""

    source: str
    """Where the rules are written."""
    feature: str | None
    """Features of a vision transformer with a class token; None is the encoder's own default."""
    neighbors: int
    """Neighbors of the k-NN."""
    temperature: float
    """Temperature of its votes."""
    linear: Literal["logistic", "sgd"]
    """Linear probe: logistic regression to convergence, or SGD for some epochs."""
    rates: tuple[float, ...] = ()
    """Learning rates of the SGD at batch size 256; of several, the validation split chooses."""
    decays: tuple[float, ...] = (0.0,)
    """Weight decays of the SGD."""
    epochs: int = 0
    """Epochs of the SGD, with cosine decay to 0; the last one counts."""
    departures: str = ""
    """What differs from the source."""


_NO_CROPS = "The source trains the linear layer on random crops and flips, here it sees clean images"

PROTOCOLS: Registry[Protocol] = Registry(
    "eval.protocol",
    {
        "ours": Protocol("docs/evaluation.md", None, 20, 0.07, "logistic"),
        "dino": Protocol(
            "https://github.com/facebookresearch/dino eval_knn.py, eval_linear.py",
            "last.cls", 20, 0.07, "sgd", (0.001,), epochs=100,
            departures=f"{_NO_CROPS}, of the last block; the source takes the class tokens of the last four blocks of "
            "ViT-S, and reports the best epoch on the test split; here it is the last.",
        ),
        "solo-learn": Protocol(
            "https://github.com/vturrisi/solo-learn main_knn.py, main_linear.py",
            None, 20, 0.07, "sgd", (0.1,), epochs=100,
            departures=f"{_NO_CROPS}. The source searches k and temperature of the k-NN on the test split; here they "
            "are fixed. Its CIFAR tables show probes trained online during pretraining.",
        ),
        "lightly": Protocol(
            "https://github.com/lightly-ai/lightly benchmarks/imagenet",
            None, 200, 0.1, "sgd", (0.1,), epochs=90,
            departures=f"{_NO_CROPS}. The k-NN of its CIFAR tables is the best epoch's; here it is one checkpoint's.",
        ),
        "lejepa": Protocol(
            "https://arxiv.org/abs/2511.08544, https://github.com/rbalestr-lab/lejepa",
            None, 20, 0.07, "sgd", (0.001, 0.01, 0.1), (0.0, 1e-6), epochs=100,
            departures=f"{_NO_CROPS}. The source trains a layer norm and a linear layer by AdamW online, on the last "
            "two blocks.",
        ),
    },
)  # fmt: skip
"""Protocols by name."""
