"""What a module computes in a validation: features of clean images, and the training loss of held-out ones."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from hjepa_pl.models.base import Encoder
from hjepa_pl.modules.check_data import check_clean
from hjepa_pl.modules.features import pooled
from hjepa_pl.objectives.record import StepRecord
from hjepa_pl.types import CleanBatch, RepeatedViews, ViewBatch

EvalBatch = CleanBatch | ViewBatch | RepeatedViews
"""A batch of a probe or of clean held-out images; held-out views as in training; repeated views of held-out images."""


class Model(Protocol):
    """What is read of a module here."""

    context_encoder: Encoder
    target_encoder: Encoder | None

    def compute(self, batch: ViewBatch) -> tuple[Tensor, StepRecord]:
        """Return the loss of a batch, and the record of its terms."""

    @property
    def log_dict(self) -> Callable[..., None]:
        """Lightning's, which logs metrics."""


def validate_batch(module: Model, batch: EvalBatch, both: bool) -> dict[str, Any]:
    """Return what callbacks read of a validation batch.

    Args:
        module: The module.
        batch: Any of the three kinds.
        both: Whether to evaluate the target encoder beside the online one.

    Returns:
        Of clean images 'online' and 'target', each (B, D) float32; of repeated views the same, (B, Q, D); of views as
        in training 'levels', the `LevelState` of each token level by its name.
    """
    if isinstance(batch, ViewBatch):
        return held_out_loss(module, batch)
    networks = {"online": module.context_encoder} | ({"target": module.target_encoder} if both else {})
    if isinstance(batch, RepeatedViews):
        return {name: _of_views(network, batch) for name, network in networks.items() if network is not None}
    check_clean(batch)
    return {name: pooled(network, batch.image) for name, network in networks.items() if network is not None}


def held_out_loss(module: Model, batch: ViewBatch) -> dict[str, Any]:
    """Log val/loss and val/<term>, the loss and the terms that training computes, of held-out views.

    The views and masks follow the counters of the batch, the same in every validation. The module is in evaluation
    mode: no drop path, and the projector's batch norm uses its running averages; nothing is updated.
    """
    # Tables that are cached here are used in training too, where inference tensors are not allowed.
    with torch.inference_mode(False), torch.no_grad():
        loss, record = module.compute(batch)
    terms = {"loss": loss, **record.terms, **record.n_ep}
    # Batches are of equal size, so that the mean over batches and ranks is that over images.
    module.log_dict(
        {f"val/{name}": value.float() for name, value in terms.items()},
        on_step=False, on_epoch=True, batch_size=1, sync_dist=True, add_dataloader_idx=False,
    )  # fmt: skip
    return {"levels": record.levels}


def _of_views(network: Encoder, batch: RepeatedViews) -> Tensor:
    """Return the pooled features of each view, (B, Q, D) float32."""
    return torch.stack([pooled(network, view) for view in batch.views], dim=1)
