"""Pictures of a run while it trains: views and masks, errors, features, attention, spectrum, gradients."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image
from torch import Tensor

from hjepa_pl.callbacks.pictures.draw import Sample, looking, pictures
from hjepa_pl.callbacks.pictures.gradients import GradientNorms
from hjepa_pl.callbacks.pictures.output import log, log_embedding, save, thumbnails
from hjepa_pl.evaluation.pictures.chart import Line, chart
from hjepa_pl.evaluation.spectra import singular_values
from hjepa_pl.types import CleanBatch, ViewBatch

_IMAGES = 6
"""Images that are drawn."""
_FEATURES = 1000
"""Most embeddings of a spectrum, and most points of TensorBoard's projector."""
_HISTORY = ("errors", "pca", "attention")
"""Pictures of which earlier ones are kept."""
_SHARE = 0.01
"""Share of the run's time that pictures may take, but for the first."""


class PictureCallback(pl.Callback):
    """Draw what a run sees and computes, at the end of each validation; training is unchanged.

    Written to DIRECTORY/pictures as PNG files, to TensorBoard and to W&B: `views` (views, context and targets of each
    level), `errors` (prediction error at each cell), `pca` (principal components of the patch tokens), `attention` (of
    the pooled embedding, and rollout), `spectrum` (singular values of the embedding) and `gradients` (gradient norm of
    each part). All are of the same images, from the first batch of the run. At the end TensorBoard's projector gets the
    embeddings of the first probe's test images with their thumbnails, at most 1,000.

    The first validation is always drawn, later ones as long as all pictures together take less than 1 % of the run's
    time. Without a validation the ends of epochs and of the run take its place. Pictures that a model of your
    own cannot give are left out. Only rank zero draws, and a time budget that is about to end is not spent on pictures.

    Args:
        directory: Folder of the run.

    Attributes:
        seconds: Time that pictures took so far.
        drawn: Names of the pictures that were drawn last.
    """

    def __init__(self, directory: str) -> None:
        self.folder = Path(directory) / "pictures"
        self.seconds, self.drawn = 0.0, list[str]()
        self._last, self._began = 0.0, time.monotonic()
        self._sample: Sample | None = None
        self._gradients = GradientNorms()
        self._features: dict[str, list[Tensor]] = {}
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._thumbnails: list[Tensor] = []
        self._first_spectrum: Line | None = None
        self._failed: set[str] = set()

    # ------------------------------------------------------------------------------------------- what is seen in a run

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the run."""
        self._began, self.seconds, self._last, self._sample = time.monotonic(), 0.0, 0.0, None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep a few images of the first batch, and the embeddings of the last batches where there is no probe."""
        if not trainer.is_global_zero:
            return
        if self._sample is None and isinstance(batch, ViewBatch):
            self._sample = _sample(trainer, batch)
        if self._probe(trainer) is None and isinstance(outputs, dict) and "embedding" in outputs:
            kept = self._features.setdefault("online", [])
            kept.append(outputs["embedding"].detach().float().clone())  # a CUDA graph overwrites its output
            while sum(map(len, kept)) - len(kept[0]) >= _FEATURES:
                kept.pop(0)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Record gradient norms, where the module logs anyway."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.is_global_zero and (trainer.global_step + 1) % every == 0:
            began = time.monotonic()
            self._gradients.record(trainer, pl_module, optimizer)
            self.seconds += time.monotonic() - began

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Discard the embeddings of the previous validation."""
        if self._probe(trainer) is not None:
            self._features, self._rows = {}, []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep embeddings of the first probe's test images, and once their thumbnails."""
        if dataloader_idx != self._probe(trainer) or not isinstance(batch, CleanBatch) or not trainer.is_global_zero:
            return
        done = sum(len(label) for label, _ in self._rows)
        if trainer.sanity_checking or done >= _FEATURES or not isinstance(outputs, dict):
            return
        left = _FEATURES - done
        for name in ("target", "online"):
            if isinstance(outputs.get(name), Tensor):
                self._features.setdefault(name, []).append(outputs[name][:left].detach().to("cpu", torch.float32))
        self._rows.append((batch.label[:left].cpu(), batch.place[:left].cpu()))
        if len(self._thumbnails) < len(self._rows):
            self._thumbnails.append(thumbnails(batch.image[:left]))

    # ------------------------------------------------------------------------------------------------ when it is drawn

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the state after an epoch in a run without validation."""
        if not _validates(trainer):
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the end of a run without validation so far, and fill TensorBoard's projector."""
        if not (_validates(trainer) and self.drawn) and getattr(pl_module, "budget", None) is None:
            self._draw(trainer, pl_module)
        began = time.monotonic()
        features = self._joined()
        if self._rows and features and self._fits(pl_module):
            labels = torch.cat([label for label, _ in self._rows])
            name = next(iter(features))
            images = torch.cat(self._thumbnails)
            if len(images) == len(features[name]):
                log_embedding(trainer, features[name], labels, images, f"{name}_embedding")
        self.seconds += time.monotonic() - began

    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Draw all pictures, unless they would take too much of the run's time."""
        if not trainer.is_global_zero or self._sample is None or not self._fits(module):
            return
        began = time.monotonic()
        expected = 1.5 * self._last  # a busy machine may take longer
        if self.drawn and self.seconds + expected > _SHARE * (began - self._began):
            return
        before = self.seconds
        self.drawn = []
        epoch = max(1, trainer.current_epoch + int(trainer.validating))
        with looking(module):
            for name, draw in pictures(module, self._sample, f"epoch {epoch}"):
                self._put(trainer, name, draw, epoch)
        self._put(trainer, "spectrum", lambda: self._spectrum(epoch), epoch)
        self._put(trainer, "gradients", self._gradients.picture, epoch)
        self._last = time.monotonic() - began
        self.seconds = before + self._last

    def _fits(self, module: pl.LightningModule) -> bool:
        """Return whether a time budget leaves time for pictures."""
        progress = getattr(module, "progress", None)
        budget = getattr(progress, "budget", None)
        return budget is None or budget - progress.seconds > 3 * (self._last or 1.0)  # type: ignore[union-attr]

    def _put(self, trainer: pl.Trainer, name: str, draw: Any, epoch: int) -> None:
        """Draw, write and log a picture; one that fails is left out, with one warning."""
        if name in self._failed:
            return
        try:
            picture: Image.Image | None = draw()
            if picture is None:
                return
            save(picture, self.folder, name, epoch, history=name in _HISTORY)
            log(trainer, name, picture)
            self.drawn.append(name)
        except Exception as error:  # a run does not end for a picture
            self._failed.add(name)
            reason = " ".join(str(error).split()) or type(error).__name__
            rank_zero_warn(f"The picture {name} is left out: {reason.rstrip('.')}.")

    def _spectrum(self, epoch: int) -> Image.Image | None:
        """Return the singular values of the embeddings, beside those of the first picture."""
        lines = []
        for name, features in self._joined().items():
            if len(features) >= 4:
                values = singular_values(features)
                lines.append(Line(f"{name}, epoch {epoch}", list(enumerate(values, start=1))))
        if not lines:
            return None
        if self._first_spectrum is None:
            self._first_spectrum = lines[0]
        elif self._first_spectrum.name != lines[0].name:
            lines.append(self._first_spectrum)
        count = len(next(iter(self._joined().values())))
        return chart(
            f"Spectrum of the embedding of {count:,} images", lines, "number of the singular value",
            "singular value / square root of the number of images (log scale)",
        )  # fmt: skip

    def _joined(self) -> dict[str, Tensor]:
        return {name: torch.cat(parts) for name, parts in self._features.items()}

    @staticmethod
    def _probe(trainer: pl.Trainer) -> int | None:
        """Return the number of the loader of the first probe's test images."""
        splits = getattr(getattr(trainer, "datamodule", None), "probe_splits", None) or []
        return next((i for i, split in enumerate(splits) if split.split == "test"), None)


def _sample(trainer: pl.Trainer, batch: ViewBatch) -> Sample:
    """Return copies of the first images of a batch."""
    statistics = getattr(getattr(trainer, "datamodule", None), "statistics", None)
    mean, std = statistics() if callable(statistics) else (None, None)
    counters = batch.counters._replace(position=batch.counters.position[:_IMAGES].clone())
    return Sample(tuple(view[:_IMAGES].clone() for view in batch.views), counters, mean, std)


def _validates(trainer: pl.Trainer) -> bool:
    """Return whether the run has validations."""
    return bool(trainer.enable_validation) and sum(trainer.num_val_batches) > 0
