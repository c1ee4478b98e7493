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
IMAGE_TASKS = {"finetune": "fine-tuned"}
"""Tasks that train on the images themselves, not on features, with their headings in tables."""


def heading(task: str) -> str:
    """Return the heading of a task in tables, with the unit of its headline."""
    if task in IMAGE_TASKS:
        return f"{IMAGE_TASKS[task]} %"
    kind = TASKS.find(task)
    return f"{kind.title} {kind.unit}".strip()


__all__ = ["IMAGE_TASKS", "TASKS", "Outcome", "Task", "heading"]
