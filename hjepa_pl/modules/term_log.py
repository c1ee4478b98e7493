"""Logs of a pretraining module: loss terms and each dataset's part of them on logged steps, the data by epoch."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from hjepa_pl.types import TrainDataModule, train_data_module
from hjepa_pl.utils.distributed import mean_over_ranks


class TermLog:
    """Copies terms from the device on logged steps only (`log_every_n_steps`); other steps do not wait for it.

    Args:
        module: Logs under its name.

    Attributes:
        terms: Detached terms of each micro-batch since the last optimizer step, for the finite check.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        self.module = module
        self.terms: list[dict[str, Tensor]] = []
        self._names: Sequence[str] = ()
        self._by_dataset: list[Tensor] = []

    def is_logged_step(self) -> bool:
        """Return whether the current batch belongs to a logged step."""
        trainer: Any = self.module.trainer  # a connector sets these two attributes, which type checkers do not see
        return (trainer.global_step + 1) % trainer.log_every_n_steps == 0 or bool(trainer.fast_dev_run)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Keep a micro-batch's terms, and on a logged step log them from one stacked tensor.

        One `log` call a term costs milliseconds and, on an accelerator, a synchronization each.

        Args:
            terms: Scalars.
        """
        detached = {name: value.detach() for name, value in terms.items()}
        self.terms.append(detached)
        if self.is_logged_step():
            values = torch.stack([v.float() for v in detached.values()]).tolist()
            logged = {f"train/{name}": value for name, value in zip(detached, values, strict=True)}
            group = self.module.trainer.optimizers[0].param_groups[0]
            logged["train/lr"], logged["train/weight_decay"] = group["lr"], group["weight_decay"]
            self.module.log_dict(logged)

    # ---------------------------------------------------------------------------------------------------- by dataset

    def add_predictions(self, source: Tensor, by_image: Callable[[], Tensor | None]) -> None:
        """Sum a micro-batch's prediction losses by dataset, on a logged step of a mixture of several.

        Args:
            source: (B,) int64, index of each image's dataset.
            by_image: Returns each image's prediction loss, (B,); None if there is none.
        """
        if not self.is_logged_step():
            return
        data = train_data_module(getattr(self.module.trainer, "datamodule", None))
        self._names = [] if data is None else data.names
        if len(self._names) > 1 and (values := by_image()) is not None:
            self._by_dataset.append(sum_by_dataset(values, source, len(self._names)))

    def step_ended(self) -> None:
        """Log `train/prediction/<dataset>`, the mean prediction loss over the step's images of a dataset.

        It is the sum of the weighted distances at the token levels, in the pyramid and between views: the loss without
        regularizers, which are defined on a batch only. The images are those of all processes and micro-batches of the
        step; a dataset without an image is not logged. A mixed image (Mixup, CutMix) counts for its own dataset, not
        for its partner's.
        """
        self.terms.clear()
        if not self._by_dataset:
            return
        sums, counts = mean_over_ranks(torch.stack(self._by_dataset).sum(dim=0)).tolist()
        self._by_dataset.clear()
        means = {
            f"train/prediction/{name}": value / count
            for name, value, count in zip(self._names, sums, counts, strict=True)
            if count
        }
        # Not by `log`, which would repeat the last value of a dataset without an image in this step.
        step = self.module.trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in self.module.trainer.loggers:
            logger.log_metrics(means, step=step)

    # ------------------------------------------------------------------------------------------------------ by epoch

    def epoch_started(self, data: TrainDataModule | None) -> None:
        """Log each dataset's fraction of the epoch's images, and the number of local crops where it grows."""
        if data is None:
            return
        drawn = data.share_drawn(self.module.trainer.current_epoch)
        if len(drawn) > 1:
            self.module.log_dict({f"data/share/{name}": fraction for name, fraction in drawn.items()})
        if (crops := data.growing_crops()) is not None:
            self.module.log("data/local_views", float(crops))


def sum_by_dataset(values: Tensor, source: Tensor, datasets: int) -> Tensor:
    """Return sums and counts of values by dataset, (2, datasets) float32, without a device synchronization.

    Args:
        values: (B,) float32.
        source: (B,) int64, index of each value's dataset; values with another index are ignored.
        datasets: Number of datasets.
    """
    member = source[:, None] == torch.arange(datasets, device=source.device)
    # `where`, not a product: a value that is not finite would spoil the sums of the others.
    return torch.stack([torch.where(member, values[:, None], 0.0).sum(dim=0), member.sum(dim=0).float()])
