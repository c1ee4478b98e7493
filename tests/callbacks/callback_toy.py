"""A tiny module and data that obey the contract between callbacks and LightningModule."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hjepa_pl.callbacks import MetricsCSV
from hjepa_pl.types import CleanBatch, Counters, LevelState, ViewBatch

GRID, WIDTH, CLASSES = 4, 16, 3


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images whose class is a bright quadrant."""
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % CLASSES
    image = torch.randn(n, 1, 8, 8, generator=g)
    for c, (r, k) in enumerate(((0, 0), (0, 4), (4, 0))):
        image[label == c, :, r : r + 4, k : k + 4] += 1.5
    return image, label


class Batches:
    """A loader that starts where the run stands (findings 2.1) and gives `ViewBatch`."""

    def __init__(self, data: "ToyData") -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.steps

    def __iter__(self) -> Iterator[ViewBatch]:
        done = self.data.trainer.fit_loop.epoch_loop.batch_progress.total.processed
        epoch, offset = divmod(done, self.data.steps)
        for i in range(offset, self.data.steps):
            step = epoch * self.data.steps + i
            x, y = images(self.data.batch, 1000 + step)
            place = torch.arange(self.data.batch)
            yield ViewBatch((x, x.flip(-1)), y, torch.zeros_like(y), Counters(epoch, step, place))


class ToyData(pl.LightningDataModule):
    def __init__(self, steps: int = 6, batch: int = 12, probes: tuple[str, ...] = ("quads",)) -> None:
        super().__init__()
        self.steps, self.batch = steps, batch
        self.probe_splits = [
            SimpleNamespace(name=name, split=split, num_classes=CLASSES, size=size)
            for name in probes
            for split, size in (("train", 60), ("test", 30))
        ]

    def train_dataloader(self) -> Batches:
        return Batches(self)

    def val_dataloader(self) -> list[DataLoader]:
        loaders = []
        for i, split in enumerate(self.probe_splits):
            x, y = images(split.size, i)
            rows = list(zip(x, y, range(split.size), strict=True))
            loaders.append(DataLoader(rows, batch_size=16, collate_fn=collate))
        return loaders


def collate(rows: list[Any]) -> CleanBatch:
    x, y, i = zip(*rows, strict=True)
    return CleanBatch(torch.stack(x), torch.stack(y), torch.tensor(i))


class ToyModule(pl.LightningModule):
    """Predict the target of each cell from the whole image; `code` says how alive the targets are."""

    def __init__(
        self,
        code: str = "living",
        target: bool = True,
        fail_at: int | None = None,
        lr: float = 1e-3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.code, self.has_target, self.fail_at, self.lr = code, target, fail_at, lr
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, GRID * GRID * WIDTH))
        self.predictor = nn.Linear(WIDTH, WIDTH)
        self.places = nn.Parameter(torch.randn(GRID * GRID, WIDTH))
        self.dropout = nn.Dropout(dropout)  # draws from the global generator: a watcher that draws too is caught
        self.register_buffer("shift", torch.zeros(1))

    def encode(self, x: Tensor) -> Tensor:
        tokens = self.encoder(x).unflatten(1, (GRID * GRID, WIDTH))
        if self.code == "position":
            tokens = 1e-4 * tokens + self.places
        if self.code == "image":
            tokens = 0.2 * tokens + tokens.mean(1, keepdim=True) * GRID
        return torch.layer_norm(tokens, (WIDTH,))

    def training_step(self, batch: ViewBatch, batch_idx: int) -> dict[str, Any]:
        if self.fail_at is not None and self.global_step >= self.fail_at:
            raise RuntimeError("out of\npaper")
        tokens = self.encode(batch.views[0])
        target = self.encode(batch.views[1]).detach()
        prediction = self.predictor(self.dropout(tokens))
        loss = (prediction - target).square().mean()
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.log_dict({"train/loss": loss, "train/last_c1": loss * 2})
        cells = torch.arange(GRID * GRID).expand(len(tokens), -1)
        level = LevelState(prediction.detach(), target, cells, target)
        embedding = tokens.detach().mean(1)
        return {"loss": loss, "levels": {"last_c1": level}, "embedding": embedding, "projection": None}

    def validation_step(self, batch: CleanBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        online = self.encode(batch.image).flatten(1)
        return {"online": online, "target": online * 0.5 + 0.1} if self.has_target else {"online": online}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.lr)


def fit(
    folder: Path,
    callbacks: list[Any],
    module: ToyModule | None = None,
    data: ToyData | None = None,
    ckpt: str | None = None,
    resumed_step: int | None = None,
    **trainer: Any,
) -> tuple[pl.Trainer, ToyModule]:
    """Train for real, on the CPU."""
    torch.manual_seed(0)
    module = module or ToyModule()
    saver = ModelCheckpoint(folder / "checkpoints", save_last=True)
    keys: dict[str, Any] = {
        "max_epochs": 2, "log_every_n_steps": 2, "num_sanity_val_steps": -1, "enable_progress_bar": False,
    } | trainer  # fmt: skip
    run = pl.Trainer(
        accelerator="cpu", devices=1, logger=MetricsCSV(str(folder), resumed_step), callbacks=[*callbacks, saver],
        enable_model_summary=False, use_distributed_sampler=False, **keys,
    )  # fmt: skip
    run.fit(module, datamodule=data or ToyData(), ckpt_path=ckpt)
    return run, module
