"""What a pretraining module logs: its terms and each dataset's share of them on logged steps, the data by epoch."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from hjepa_pl.utils.distributed import mean_over_ranks


class SparseLogs(pl.LightningModule):
    """Reads figures from the device on logged steps only (`log_every_n_steps`): no other step waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self._terms: list[dict[str, Tensor]] = []
        self._by_dataset: list[Tensor] = []

    def _logs_now(self) -> bool:
        """Return whether the running batch ends on a logged step."""
        trainer: Any = self.trainer  # these two are set by a connector, unseen by type checkers
        return (trainer.global_step + 1) % trainer.log_every_n_steps == 0 or bool(trainer.fast_dev_run)

    def log_terms(self, terms: dict[str, Tensor]) -> None:
        """Keep a micro-batch's terms for the finite check, and log them every n steps from one stacked tensor.

        A `self.log` call a term and step would cost milliseconds and, on an accelerator, a wait for each.
        """
        detached = {name: value.detach() for name, value in terms.items()}
        self._terms.append(detached)
        if self._logs_now():
            values = torch.stack([v.float() for v in detached.values()]).tolist()
            logged = {f"train/{name}": value for name, value in zip(detached, values, strict=True)}
            group = self.trainer.optimizers[0].param_groups[0]
            logged["train/lr"], logged["train/weight_decay"] = group["lr"], group["weight_decay"]
            self.log_dict(logged)

    # ---------------------------------------------------------------------------------------------------- by dataset

    def _dataset_names(self) -> list[str]:
        """Return the names of the mixture's datasets; none for one dataset, or data of another class."""
        names = getattr(getattr(self.trainer, "datamodule", None), "names", None)
        return names if isinstance(names, list) and len(names) > 1 else []

    def note_predictions(self, source: Tensor, by_image: Callable[[], Tensor | None]) -> None:
        """Sum up a micro-batch's prediction losses by dataset, if its step is logged and the mixture has several.

        Args:
            source: (B,) int64, index of each image's dataset.
            by_image: Computes each image's prediction losses, (B,), None if there are none.
        """
        names = self._dataset_names()
        if not names or not self._logs_now():
            return
        values = by_image()
        if values is not None:
            self._by_dataset.append(sum_by_dataset(values, source, len(names)))

    def log_predictions(self) -> None:
        """Log `train/prediction/<dataset>`: the mean of the prediction losses over the step's images of a dataset.

        They are the weighted distances at the token levels, in the pyramid and between views: the loss without the
        regularisers, which are of a batch as a whole, and have no share of one image. The images are those of all
        processes and micro-batches of the logged step; a dataset that has none among them is not logged. An image of
        Mixup or CutMix counts for the dataset of its own, not for that of its partner.
        """
        if not self._by_dataset:
            return
        sums, counts = mean_over_ranks(torch.stack(self._by_dataset).sum(dim=0)).tolist()
        self._by_dataset.clear()
        found = {
            f"train/prediction/{name}": value / count
            for name, value, count in zip(self._dataset_names(), sums, counts, strict=True)
            if count
        }
        # Straight to the loggers: `log` would write the last figure again for a dataset without an image in the step.
        step = self.trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in self.trainer.loggers:
            logger.log_metrics(found, step=step)

    # ------------------------------------------------------------------------------------------------------ by epoch

    def on_train_epoch_start(self) -> None:
        """Log each dataset's share of the epoch's images, and the number of local crops where that grows."""
        data = getattr(self.trainer, "datamodule", None)
        shares = getattr(data, "share_drawn", None)
        if callable(shares):
            drawn = shares(self.trainer.current_epoch)
            if len(drawn) > 1:
                self.log_dict({f"data/share/{name}": share for name, share in drawn.items()})
        crops = getattr(data, "growing_crops", None)
        if callable(crops) and (count := crops()) is not None:
            self.log("data/local_views", float(count))


def sum_by_dataset(values: Tensor, source: Tensor, datasets: int) -> Tensor:
    """Return sums of (B,) values by dataset, and how many there are, (2, datasets) float32: no wait for the device.

    Args:
        values: (B,) float32.
        source: (B,) int64, index of each value's dataset; a value of none of them is left out.
        datasets: How many there are.
    """
    member = source[:, None] == torch.arange(datasets, device=source.device)
    # Chosen, not multiplied: a value that is not finite would spoil the sums of the others.
    return torch.stack([torch.where(member, values[:, None], 0.0).sum(dim=0), member.sum(dim=0).float()])
