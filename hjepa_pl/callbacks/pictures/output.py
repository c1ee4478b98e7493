"""Where pictures go: files with a short history, TensorBoard and W&B."""

import io
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from hjepa_pl.utils.atomic_file import atomic_write

KEPT = 8
"""Earlier pictures of a kind that are kept."""
_THUMBNAIL = 32
"""Longer side of a thumbnail at most, in pixels: the projector's sheet of 1,000 has 8,192 at most."""


def save(picture: Image.Image, folder: Path, name: str, epoch: int, *, history: bool) -> None:
    """Write NAME.png and, with `history`, history/NAME_epoch0012.png, of which `KEPT` stay, evenly spread.

    Args:
        picture: The picture.
        folder: Folder of the pictures.
        name: Of the picture.
        epoch: Number of the epoch, from 1.
        history: Whether earlier ones are of interest.
    """
    paths = [folder / f"{name}.png"]
    if history:
        paths.append(folder / "history" / f"{name}_epoch{epoch:04d}.png")
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG", compress_level=4)  # half of the time of the default, files hardly larger
    for path in paths:
        with atomic_write(path, "wb", sync=False) as file:
            file.write(encoded.getvalue())
    if history:
        thin(folder / "history", name)


def thin(folder: Path, name: str) -> None:
    """Remove pictures of a kind until `KEPT` are left: never the first or the last, and those closest to others."""
    found = {int(path.stem.rpartition("_epoch")[2]): path for path in folder.glob(f"{name}_epoch*.png")}
    while len(found) > KEPT:
        epochs = sorted(found)
        gaps = {b: c - a for a, b, c in zip(epochs, epochs[1:], epochs[2:], strict=False)}
        found.pop(min(gaps, key=lambda epoch: gaps[epoch])).unlink(missing_ok=True)


def log(trainer: pl.Trainer, name: str, picture: Image.Image) -> None:
    """Give a picture to the loggers that show pictures."""
    step = trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(f"pictures/{name}", np.asarray(picture), step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(f"pictures/{name}", [picture], step)


def thumbnails(images: Tensor) -> Tensor:
    """Return small copies of normalized images, (B, 3, h, w) uint8 on the CPU, each stretched to all gray values."""
    height, width = images.shape[-2:]
    factor = min(1.0, _THUMBNAIL / max(height, width))
    small = F.adaptive_avg_pool2d(images.float(), (max(1, round(height * factor)), max(1, round(width * factor))))
    small = small[:, :3] if small.shape[1] >= 3 else small[:, :1].expand(-1, 3, -1, -1)
    low, high = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
    return ((small - low) / (high - low).clamp_min(1e-8) * 255).round().to("cpu", torch.uint8)


def log_embedding(trainer: pl.Trainer, features: Tensor, labels: Tensor, images: Tensor, name: str) -> None:
    """Give features (N, D) with labels (N,) and thumbnails (N, 3, h, w) to TensorBoard's projector."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_embedding(
                features, labels.tolist(), images.float() / 255, trainer.global_step, tag=name
            )
