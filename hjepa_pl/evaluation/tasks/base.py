"""Base class of the evaluation tasks."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from hjepa_pl.evaluation.base import Features
from hjepa_pl.evaluation.protocols import Protocol


class Outcome(NamedTuple):
    """What a task found."""

    metrics: dict[str, float]
    """By name; the first one is the headline."""
    probabilities: Tensor | None = None
    """(M, num_classes) of the test images, for tasks that classify them."""


class Task(ABC):
    """Measures frozen features of a labeled dataset.

    A new one is a subclass and its name in `TASKS`.

    Args:
        protocol: Rules of the probes.
        seed: Key of all draws.
    """

    title: ClassVar[str]
    """Heading in tables."""
    unit: ClassVar[str] = "%"
    """Of the headline; empty for numbers without one."""
    higher_is_better: ClassVar[bool | None] = True
    """Of the headline; None where neither end is better."""

    def __init__(self, protocol: Protocol, seed: int) -> None:
        self.protocol, self.seed = protocol, seed

    @abstractmethod
    def __call__(self, features: Features) -> Outcome:
        """Return the metrics; the test images take no part in any choice."""
