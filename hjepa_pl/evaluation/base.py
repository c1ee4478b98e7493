"""Base class of the probes."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

VAL = "val"
"""Metric of the validation split, by which checkpoints and settings are chosen; never by the others."""


class Features(NamedTuple):
    """Features of a labeled dataset."""

    train_x: Tensor
    """(N, D) of the training split."""
    train_y: Tensor
    """(N,) int64 labels, 0 to num_classes - 1."""
    test_x: Tensor
    """(M, D) of the test split, on the same device."""
    test_y: Tensor
    """(M,) int64 labels."""
    num_classes: int


class Probe(ABC):
    """Measures how good frozen features are.

    A new one is a subclass and its name in `PROBES`.
    """

    title: ClassVar[str]
    """Heading in tables."""

    @abstractmethod
    def __call__(self, features: Features) -> dict[str, float]:
        """Return metrics by name.

        Returns:
            '' is the accuracy on the test split in percent, with the whole training split; 'val' that on the validation
            split (`validation_split`), where a class has five images: the test split takes no part in it. Others
            (`extra_metrics`) are logged as `<probe>_<name>`.
        """

    def extra_metrics(self, num_classes: int) -> tuple[str, ...]:
        """Return the names of further metrics."""
        return ()

    def note(self, metric: str, value: float) -> str | None:
        """Return a remark on the value of a metric, which is logged once; None for no remark."""
        return None
