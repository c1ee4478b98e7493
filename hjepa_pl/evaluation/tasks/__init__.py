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
IMAGE_TASKS = {"attentive": "attentive", "finetune": "fine-tuned"}
"""Tasks on the images themselves or on all their tokens, not on one vector an image, with their headings in tables."""


def title_of(task: str) -> str:
    """Return the heading of a task, without a unit."""
    return IMAGE_TASKS[task] if task in IMAGE_TASKS else TASKS.find(task).title


def unit_of(task: str) -> str:
    """Return the unit of a task's headline; empty for a number without one."""
    return "%" if task in IMAGE_TASKS else TASKS.find(task).unit


def heading(task: str) -> str:
    """Return the heading of a task in tables, with the unit of its headline."""
    return f"{title_of(task)} {unit_of(task)}".strip()


__all__ = ["IMAGE_TASKS", "TASKS", "Outcome", "Task", "heading", "title_of", "unit_of"]
