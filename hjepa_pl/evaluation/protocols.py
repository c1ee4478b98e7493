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
            departures=f"{_NO_CROPS}, and reports the best epoch on the test split; here it is the last. For ViT-S it "
            "takes the class tokens of the last four blocks: --features last4.cls.",
        ),
        "solo-learn": Protocol(
            "https://github.com/vturrisi/solo-learn main_knn.py, bash_files/linear/run_linear.sh",
            None, 20, 0.07, "sgd", (0.2,), epochs=100,
            departures=f"{_NO_CROPS}; its rate, .1 at batch size 128, falls by steps at epochs 60 and 80, here on a "
            "cosine. It prints the k-NN for a list of k and temperatures; here they are DINO's. Its CIFAR tables show "
            "probes trained online.",
        ),
        "lightly": Protocol(
            "https://github.com/lightly-ai/lightly benchmarks/imagenet/resnet50/linear_eval.py, knn_eval.py",
            None, 200, 0.1, "sgd", (0.1,), epochs=90,
            departures=f"{_NO_CROPS}, and reports the best epoch on the test split; here it is the last. The k-NN of "
            "its CIFAR tables is the best epoch's of the pretraining.",
        ),
        "lejepa": Protocol(
            "https://github.com/rbalestr-lab/lejepa MINIMAL.md",
            None, 20, 0.07, "sgd", (0.001, 0.01, 0.1), (0.0, 1e-6), epochs=100,
            departures="The source trains a layer norm and a linear layer by AdamW (rate .001) online, on augmented "
            "views; here the linear layer is trained by SGD on clean images after pretraining, and the validation "
            "split chooses rate and decay.",
        ),
    },
)  # fmt: skip
"""Protocols by name."""
