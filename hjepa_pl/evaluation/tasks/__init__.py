"""Evaluation tasks: what can be measured of frozen features of a labeled dataset."""

from hjepa_pl.evaluation.tasks.base import Outcome, Task
from hjepa_pl.evaluation.tasks.few_shot import FewShot
from hjepa_pl.evaluation.tasks.knn import KNN
from hjepa_pl.evaluation.tasks.linear import Linear
from hjepa_pl.evaluation.tasks.quality import Quality
from hjepa_pl.evaluation.tasks.retrieval import Retrieval
from hjepa_pl.utils.registry import Registry

TASKS: Registry[type[Task]] = Registry(
    "eval.tasks",
    {"knn": KNN, "linear": Linear, "few_shot": FewShot, "retrieval": Retrieval, "quality": Quality},
)
"""Tasks by name."""

__all__ = ["TASKS", "Outcome", "Task"]
