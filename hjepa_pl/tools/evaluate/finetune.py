"""The task finetune: the whole encoder trained on a dataset's labels, by `HJEPAFinetuneModule`."""

import dataclasses
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hjepa_pl.backbones import Backbone
from hjepa_pl.data.augment.augmenter import Augmenter
from hjepa_pl.data.augment.color import adapt_channels
from hjepa_pl.data.augment.config import AugmentationConfig, augmentation_config
from hjepa_pl.data.loading.eval_loader import CleanRows, RawClean, clean_batch, clean_loader
from hjepa_pl.data.loading.worker_slots import available_workers, choose_num_workers
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.evaluation.base import Features
from hjepa_pl.evaluation.tasks import Outcome
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.modules.finetune import HJEPAFinetuneModule
from hjepa_pl.tools.evaluate.config import FinetuneRun
from hjepa_pl.tools.evaluate.extract import Pass
from hjepa_pl.tools.evaluate.networks import OwnEncoder
from hjepa_pl.tools.evaluate.sets import LabeledSet
from hjepa_pl.tools.quiet import quiet_lightning
from hjepa_pl.types import Counters
from hjepa_pl.utils.malloc import keep_in_worker

CROP_SCALE = (0.4, 1.0)
"""Smallest and largest fraction of the area in `augmentation: crop`."""


def finetune(
    network: OwnEncoder,
    data: LabeledSet,
    features: Features,
    run: FinetuneRun,
    augmentation: AugmentationConfig,
    seed: int,
    how: Pass,
) -> Outcome:
    """Fine-tune an encoder on the training images, and classify the test images after the last epoch.

    Args:
        network: The encoder; its own weights stay as they are.
        data: The dataset.
        features: Mean patch tokens of its training images, from which the head starts (LP-FT), and all labels.
        run: How long, on which views.
        augmentation: Of the training images.
        seed: Of the head, the order, the views and the mixing.
        how: Device and precision.
    """
    began = time.perf_counter()
    backbone = Backbone(network.build(), "online", network.spec.mean, network.spec.std)
    images = FinetuneData(network, data, run, augmentation, seed)
    half = how.precision != torch.float32
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = HJEPAFinetuneModule(backbone, len(data.classes), **(run.options or {}))
        module.start_head(features.train_x, features.train_y)
        trainer = pl.Trainer(
            accelerator=how.device.type, devices=[how.device.index or 0] if how.device.type != "cpu" else 1,
            precision="bf16-mixed" if half else "32-true", max_epochs=run.epochs, gradient_clip_val=3.0, logger=False,
            enable_checkpointing=False, enable_model_summary=False, limit_val_batches=0,
            enable_progress_bar=sys.stderr.isatty(), use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module, datamodule=images)
        parts: Any = trainer.predict(module, datamodule=images)
    probabilities = torch.cat(parts).float()
    accuracy = 100.0 * float((probabilities.argmax(dim=1) == features.test_y).double().mean())
    return Outcome({"accuracy": accuracy, "train_seconds": round(time.perf_counter() - began, 2)}, probabilities)


class FinetuneData(pl.LightningDataModule):
    """Augmented training images with labels, and clean test images.

    Files are resized to the encoder's size when they are read, and cropped after that.
    """

    def __init__(
        self, network: OwnEncoder, data: LabeledSet, run: FinetuneRun, augmentation: AugmentationConfig, seed: int
    ) -> None:
        super().__init__()
        self.spec, self.data, self.run, self.seed, self.bad = network.spec, data, run, seed, BadFiles()
        self.augmenter = Augmenter(augmentation, self.spec.size, self.spec.mean, self.spec.std, seed)

    def _rows(self, split: str) -> tuple[CleanRows, int]:
        part = self.data.train if split == "train" else self.data.test
        workers = choose_num_workers([part.images], None, available_workers(None), 1)
        return CleanRows(part.images, part.rows, self.spec.size, self.spec.channels, part.name), workers

    def train_dataloader(self) -> DataLoader[RawClean]:
        """Return the training images, in another order in each epoch."""
        rows, workers = self._rows("train")
        order: Any = _Batches(len(rows), self.run.batch_size, self.seed)
        return DataLoader(rows, batch_size=None, sampler=order, num_workers=workers, worker_init_fn=keep_in_worker)

    def predict_dataloader(self) -> DataLoader[RawClean]:
        """Return the test images in order."""
        rows, workers = self._rows("test")
        return clean_loader(rows, range(len(rows)), batch_size=256, num_workers=workers, pin_memory=False)

    val_dataloader = predict_dataloader  # not used, but Lightning warns without one

    def on_after_batch_transfer(self, batch: RawClean, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Return images, augmented in training, and labels."""
        trainer = self.trainer
        assert trainer is not None
        if not trainer.training:
            clean = clean_batch(batch, self.spec, self.bad)
            return clean.image, clean.label
        self.bad.add(batch.broken, "is replaced by the next one")
        images = adapt_channels(batch.image, self.spec.channels).float().div_(255)
        counters = Counters(trainer.current_epoch, trainer.global_step, batch.position)
        return self.augmenter.view(images, counters, 0), batch.label


class _Batches:
    """Batches of positions in a random order, which is a function of the seed and the epoch; the last one is dropped.

    Args:
        size: Number of images.
        batch_size: Images of a batch, at most `size`.
        seed: Of the order.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed, self.epoch = size, min(batch_size, size), seed, 0

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(hash_int(self.seed, self.epoch, Stream.ORDER))
        self.epoch += 1
        order = torch.randperm(self.size, generator=generator).tolist()
        return iter([order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))])


def augmentation_of(run: FinetuneRun, metadata: dict[str, Any]) -> AugmentationConfig:
    """Return the augmentation of fine-tuning: a preset, or crops with the flips of the pretraining run.

    The colors of pretraining are left out: with the whole augmentation of configs/cifar10.yaml an encoder reached 36.4
    on CIFAR-10 (5,000 labels, 8 epochs), with crops alone (`jepa`) 40.2.
    """
    if run.augmentation != "crop":
        return augmentation_config(run.augmentation)
    flip = ((metadata.get("data") or {}).get("augmentation") or {}).get("flip", 0.5)
    return dataclasses.replace(augmentation_config("none"), crop_scale=CROP_SCALE, flip=flip)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's messages about the run, about workers, and about its own use of torch."""
    with quiet_lightning(), warnings.catch_warnings():
        for message in (".*does not have many workers.*", ".*isinstance\\(treespec, LeafSpec\\).*"):
            warnings.filterwarnings("ignore", message=message)
        yield
