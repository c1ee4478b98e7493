"""What `hjepa predict` leaves behind: the features of every image of the mixture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class FeatureWriter(BasePredictionWriter):
    """Writes `<directory>/features.pt`: per dataset `features` (N, D), `label` (N,) and `place` (N,), tensors.

    Under several processes each writes what it encoded, to `features.rank<r>.pt`; `place` tells the rows' order.
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
        """Join the batches of each dataset and save them."""
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
            f"features of the training sets ({', '.join(joined)}) written to {path}: rows by number in each set "
            "('place'), without names of files."
        )
