"""Metrics of held-out images without labels: prediction gain, RankMe, alpha-ReQ and LiDAR."""

from collections import defaultdict
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from hjepa_pl.evaluation.collapse import prediction_gain
from hjepa_pl.evaluation.spectra import alpha_req, lidar, rankme
from hjepa_pl.types import CleanBatch, LevelState, RepeatedViews, ViewBatch


class HeldOutMetrics(pl.Callback):
    """Measure the images of `data.holdout` at the end of each validation; training is unchanged.

    Logged, besides val/loss and val/<term> (which the module logs): `val/<level>/gain`, the prediction gain over the
    per-position mean (`prediction_gain`), the mean over batches at least half as large as in training (all held-out
    images if they are fewer); `val/rankme`, `val/alpha_req`
    and `val/alpha_req_gap` = |alpha_req - 1|, of the clean images' pooled features; and `val/lidar`, of 8 augmented
    views of at most 128 images. They are of the target encoder if there is one, else of the online one; with both, the
    online encoder's have the suffix `_online`. All are comparable within a run, not between other data or widths.

    Cost: about 2.3 forward passes of each held-out image (one in training's views, clean in one or both networks) and
    of 128 images 8 to 16. With 1 % of 50,000 images, two views and both networks that is 1.5 % of an epoch; with a few
    thousand images validate every few epochs (`trainer.check_val_every_n_epoch`).

    Attributes:
        results: Metrics of the last validation, in the sanity check of the untrained network.
    """

    def __init__(self) -> None:
        self.results: dict[str, float] = {}
        self._gains: dict[str, list[float]] = defaultdict(list)
        self._clean: dict[str, list[Tensor]] = defaultdict(list)
        self._views: dict[str, list[Tensor]] = defaultdict(list)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Discard what is left of the previous pass."""
        for kept in (self._gains, self._clean, self._views):
            kept.clear()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Store the features of a batch, or the gain of its levels."""
        probes = len(getattr(getattr(trainer, "datamodule", None), "probe_splits", None) or [])
        if isinstance(batch, ViewBatch):
            for name, state in outputs["levels"].items():
                self._gains[name].append(float(prediction_gain(_of_all_ranks(trainer, state))))
        elif isinstance(batch, RepeatedViews) or (isinstance(batch, CleanBatch) and dataloader_idx >= probes):
            kept = self._views if isinstance(batch, RepeatedViews) else self._clean
            for name, features in outputs.items():
                kept[name].append(features.detach().to("cpu", torch.float32))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute the metrics on rank zero, and log them."""
        clean, views = _gather(trainer, self._clean), _gather(trainer, self._views)
        metrics: dict[str, float] = {}
        if trainer.is_global_zero:
            metrics = _spectral(clean, views)
        self.results = {f"val/{name}/gain": sum(g) / len(g) for name, g in self._gains.items()}
        self.results |= trainer.strategy.broadcast(metrics)
        self.on_validation_epoch_start(trainer, pl_module)
        if not trainer.sanity_checking:
            pl_module.log_dict(self.results, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)

    # `hjepa test` evaluates as `hjepa validate` does.
    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


def _spectral(clean: dict[str, Tensor], views: dict[str, Tensor]) -> dict[str, float]:
    """Return the metrics of each network's features: clean ones (N, D), and those of views (N, Q, D)."""
    metrics: dict[str, float] = {}
    evaluated = "target" if "target" in clean or "target" in views else "online"
    for network in sorted({*clean, *views}, key=lambda name: name != evaluated):
        tail = "" if network == evaluated else f"_{network}"
        if network in clean and len(clean[network]) >= 4:
            alpha = alpha_req(clean[network])
            metrics[f"val/rankme{tail}"] = rankme(clean[network])
            metrics[f"val/alpha_req{tail}"] = alpha
            metrics[f"val/alpha_req_gap{tail}"] = abs(alpha - 1)
        if network in views and len(views[network]) >= 2:
            metrics[f"val/lidar{tail}"] = lidar(views[network])
    return metrics


def _gather(trainer: pl.Trainer, kept: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Join the batches of all ranks; the metrics do not depend on the order of the images."""
    mine = {name: torch.cat(parts) for name, parts in kept.items()}
    if trainer.world_size == 1:
        return mine
    ranks: list[dict[str, Tensor] | None] = [None] * trainer.world_size
    torch.distributed.all_gather_object(ranks, mine)
    given = [rank for rank in ranks if rank]
    return {name: torch.cat([rank[name] for rank in given]) for name in (given[0] if given else {})}


def _of_all_ranks(trainer: pl.Trainer, state: LevelState) -> LevelState:
    """Return the state of a level for the images of all ranks."""
    if trainer.world_size == 1:
        return state
    return LevelState(*(trainer.strategy.all_gather(x).flatten(0, 1) for x in state))
