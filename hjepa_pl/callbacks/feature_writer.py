"""Output of `hjepa predict`: the features of all training images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class FeatureWriter(BasePredictionWriter):
    """Writes `<directory>/features.pt`: per dataset `features` (N, D), `label` (N,) and `place` (N,), tensors.

    `place` is the index of the image in its dataset. Of several processes each writes its own
    `features.rank<r>.pt`.
    """

    def __init__(self, directory: str) -> None:
        super().__init__(write_interval="epoch")
        self.directory = Path(directory)

    def write_on_epoch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Concatenate the batches of each dataset and save them."""
        names = trainer.datamodule.names  # type: ignore[attr-defined]
        sets = [predictions] if len(names) == 1 else predictions
        joined = {
            name: {key: torch.cat([batch[key].cpu() for batch in batches]) for key in batches[0]}
            for name, batches in zip(names, sets, strict=True)
            if batches
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = self.directory / f"features{rank}.pt"
        torch.save(joined, path)
        rank_zero_info(
            f"Features of the training images ({', '.join(joined)}) written to {path}; 'place' is the index of an "
            "image in its dataset."
        )
