"""Settings of `hjepa eval`."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import Count, Name, PathText, invalid, settings, to_plain

SUITES: dict[str, tuple[str, ...]] = {
    "quick": ("knn", "linear", "quality"),
    "full": ("knn", "linear", "few_shot", "retrieval", "quality"),
}
"""Tasks of each suite. They are not imported here, so that `--help` is quick."""


@settings("sets", entry="dataset")
class EvalSet:
    """A labeled dataset to judge on; keys as in `data.probe`, but all of its images by default."""

    name: Name
    """Name of a dataset that has labels and the splits `train` and `test`."""
    root: PathText | None = None
    """Folder of the data; null is `data`."""
    max_train: Annotated[int, Ge(2)] | None = None
    """Maximum number of training images, the same fraction of every class; null is all."""
    max_test: Count | None = None
    """Maximum number of test images; null is all."""
    title: Name | None = None
    """Name in the report; null is the dataset's name."""
    classes: PathText | None = None
    """Text file with the class folders to read, for trees of class folders."""
    holdout: Annotated[float, Gt(0), Le(0.9)] | None = None
    """For a `folder` without folders for its splits: fraction of its images to test on."""


@settings("finetune")
class FinetuneRun:
    """The task finetune: how long, and on which views."""

    epochs: Count = 20
    """Passes over the training images; the last one is tested."""
    batch_size: Annotated[int, Ge(2)] = 128
    """Images in a step."""
    augmentation: Literal["crop", "small", "jepa", "none"] = "crop"
    """Augmentation of the training images: random crops, flipped if the run of `ckpt` flipped; or a preset."""
    options: dict[str, Any] | None = None
    """Fields of `FinetuneConfig` (lr, layer_decay, mixup ...); null is none."""


@settings("eval")
class EvalConfig:
    """What to judge, on what, and how."""

    ckpt: PathText | None = None
    """Checkpoint, exported file or folder, or folder of a run."""
    branch: Literal["target", "online"] | None = None
    """Encoder of the checkpoint; null is the target encoder, where there is one."""
    timm: Name | None = None
    """Name of a timm model, instead of `ckpt`."""
    weights: PathText | None = None
    """State dict for `timm`, or with `ckpt` for `baseline`; null downloads timm's own."""
    baseline: Name | None = None
    """Name of a timm model to judge beside the encoder, for example a supervised one."""
    sets: list[EvalSet] | None = None
    """Labeled datasets; null is those that the run of `ckpt` was probed on."""
    suite: Literal["quick", "full"] | None = None
    """Tasks by a name: `quick` is k-NN, linear and quality, `full` all; null is quick."""
    tasks: list[Name] | None = None
    """Tasks, instead of a suite: knn, linear, few_shot, retrieval, quality; and in no suite, as they take long:
    attentive (a probe that attends to the patch tokens) and finetune (trains the whole encoder, and the untrained one
    beside it)."""
    protocol: Name = "ours"
    """Rules of the probes."""
    features: list[Name] | None = None
    """Features to judge: `last.mean`, `last.cls`, `last4.mean` (the last four blocks side by side), `6.mean` (after
    block 6), `pooled` (as the model itself pools). The first one is judged by all tasks and the others by k-NN and
    linear. Null is `last.mean` of our encoders and `pooled` of timm's, or as the protocol has it."""
    finetune: FinetuneRun | None = None
    """Settings of the task finetune; null is the defaults."""
    out: PathText | None = None
    """Folder of the report; null is `eval` in the run's folder, or `results/eval-<model>`."""
    device: Name = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`; auto is the fastest that is there."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass; auto is bfloat16 if the run of `ckpt` had 16 bits, float32 if it had 32; without a
    run float32 on a CPU and bfloat16 on a GPU."""
    seed: Annotated[int, Ge(0)] = 0
    """Key of all draws: labels, resampling, and with --sets the splits of folders (without, the run's seed is)."""
    batch_size: Count = 256
    """Images in a forward pass."""
    cache: PathText | None = None
    """Folder of the features; null is ~/.cache/hjepa_pl (or $HJEPA_CACHE), `none` keeps nothing."""

    def __post_init__(self) -> None:
        """Reject unknown names and combinations that do nothing."""
        from hjepa_pl.evaluation.protocols import PROTOCOLS
        from hjepa_pl.evaluation.tasks import IMAGE_TASKS, TASKS

        PROTOCOLS.find(self.protocol)
        for task in self.tasks or []:
            if task not in IMAGE_TASKS:
                TASKS.find(task)
        if self.tasks is not None and self.suite is not None:
            raise invalid("eval.tasks", self.tasks, "has no effect with --suite; remove one of them.")
        if self.sets == []:
            raise invalid("eval.sets", [], "must hold a dataset; remove it for those of the run.")
        if self.tasks == []:
            raise invalid("eval.tasks", [], "must hold a task, such as knn.")
        if self.finetune is not None and "finetune" not in (self.tasks or []):
            raise invalid("eval.finetune", to_plain(self.finetune), "has no effect without finetune in --tasks.")
        if "finetune" in (self.tasks or []) and self.timm is not None:
            raise invalid("eval.tasks", self.tasks, "finetune is for checkpoints of hjepa_pl; remove it.")
        if (self.ckpt is None) == (self.timm is None):
            both = "give one of them, not both" if self.ckpt else "nothing to judge"
            raise ConfigError(f"{both}: --ckpt PATH for a checkpoint or --timm NAME for a timm model.")
        if self.branch is not None and self.ckpt is None:
            raise invalid("eval.branch", self.branch, "is for checkpoints of hjepa_pl; remove it, or give --ckpt.")
        if self.weights is not None and self.timm is None and self.baseline is None:
            raise invalid("eval.weights", self.weights, "is for a timm model; name it with --timm or --baseline.")
        if self.baseline is not None and self.timm is not None:
            raise invalid("eval.baseline", self.baseline, "is for --ckpt; remove it.")

    @property
    def chosen_tasks(self) -> tuple[str, ...]:
        """Names of the tasks, each once."""
        return tuple(dict.fromkeys(self.tasks)) if self.tasks else SUITES[self.suite or "quick"]
