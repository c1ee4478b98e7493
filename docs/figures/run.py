"""Draw docs/figures/run.png: what a finished quickstart run has learned, from its folder.

    uv run hjepa fit quickstart --trainer.check_val_every_n_epoch 3
    uv run python docs/figures/run.py [results/quickstart]

Digits of the probe's test split with a mask, the principal components of their patch tokens and their nearest
neighbors in the training split by the embedding; the accuracy of the probes at each validation, from the untrained
encoder's on, beside that on raw pixels; and the loss of each level.
"""

import csv
import io
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import yaml
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter
from PIL import Image

from hjepa_pl import HJEPALightningModule, MultiDatasetDataModule
from hjepa_pl.evaluation.pictures.maps import kept_cells, pca_maps, pixels
from hjepa_pl.evaluation.pictures.sheet import fit
from hjepa_pl.types import Counters

DARK, WARM, GRAY = "#0b3c5d", "#c1440e", "#6b6b6b"
DIGITS = (0, 2, 3, 5, 8)
NEIGHBORS = 3


def clean_images(run: Path, module: HJEPALightningModule) -> tuple[torch.Tensor, torch.Tensor, tuple, tuple]:
    """Return one clean test image of each of `DIGITS`, the training images, and the mean and std of normalization."""
    keys = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    keys |= {"img_size": module.img_size, "in_chans": module.in_chans}
    data = MultiDatasetDataModule(**{k: v for k, v in keys.items() if v is not None})
    data.setup("validate")
    train, test = ([data.on_after_batch_transfer(b, i) for b in data.val_dataloader()[i]] for i in range(2))
    first = [int((test[0].label == digit).nonzero()[0]) for digit in DIGITS]
    return test[0].image[first], torch.cat([batch.image for batch in train]), *data.statistics()


def columns(run: Path, module: HJEPALightningModule) -> dict[str, list[np.ndarray]]:
    """Return the columns of images by title."""
    images, others, mean, std = clean_images(run, module)
    tiles = [fit(tile, 160) for tile in pixels(images, mean, std)]
    masks = module.masks(Counters(0, 1, torch.arange(len(images))))
    rows, cols = module.encoder.grid
    found = {"image": tiles, "context": kept_cells(tiles, masks.context, (rows, cols))}
    found["targets"] = kept_cells(tiles, masks.targets[0].flatten(1), (rows, cols))
    colors = pca_maps(module.encode_tokens(images)).unflatten(1, (rows, cols)).numpy()
    found["tokens, PCA"] = [np.kron(c, np.ones((160 // rows, 160 // cols, 1))) for c in colors]
    unit = torch.nn.functional.normalize
    nearest = (unit(module.encode(images)) @ unit(module.encode(others)).T).topk(NEIGHBORS).indices
    for n in range(NEIGHBORS):
        found[("nearest by embedding", " ", "  ")[n]] = pixels(others[nearest[:, n]], mean, std)
    return found


def curve(table: list[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of a metric."""
    rows = [(int(row["step"]) + 1, float(row[name])) for row in table if row.get(name)]
    return [step for step, _ in rows], [value for _, value in rows]


def draw_accuracy(axis: plt.Axes, table: list[dict[str, str]], metrics: dict[str, float]) -> None:
    """Draw the probes' accuracies over the steps, from those of the untrained encoder."""
    for probe, name, color, style in (("linear", "linear probe", DARK, "-o"), ("knn", "k-NN", WARM, "--s")):
        steps, values = curve(table, f"probe/digits/{probe}")
        start, pixels_ = metrics[f"probe/digits/untrained_{probe}"], metrics[f"probe/digits/pixels_{probe}"]
        axis.plot(
            [0, *steps], [start, *values], style, color=color, ms=3.5, lw=1.5, label=f"{name}: {values[-1]:.1f} %"
        )
        axis.axhline(pixels_, color=color, lw=0.9, ls=":", label=f"raw pixels, {name}: {pixels_:.1f} %")
    axis.set_title("accuracy on held-out digits, from the untrained encoder on", fontsize=9, loc="left")
    axis.set_ylabel("%", fontsize=8)
    axis.legend(fontsize=8, loc="lower right", frameon=False)


def draw_losses(axis: plt.Axes, table: list[dict[str, str]], levels: dict[str, str]) -> None:
    """Draw the loss of each level, named in words, over the steps."""
    styles = zip(levels.items(), (DARK, WARM, GRAY), ("-", "--", "-."), strict=False)
    for (level, words), color, style in styles:
        axis.plot(*curve(table, f"train/{level}"), style, color=color, lw=1.3, label=words)
    axis.set_title("loss of each level", fontsize=9, loc="left")
    axis.set_xlabel("optimizer step", fontsize=8)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(FixedLocator([0.03, 0.1, 0.3]))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.legend(fontsize=8, loc="upper right", frameon=False, ncols=3)


def main() -> None:
    """Draw and save."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "results/quickstart")
    module = HJEPALightningModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt", map_location="cpu").eval()
    with (run / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    figure = plt.figure(figsize=(12, 4.7), dpi=100)
    left, right = figure.subfigures(1, 2, width_ratios=(6.9, 5.1))
    found = columns(run, module)
    axes = left.subplots(len(DIGITS), len(found))
    left.subplots_adjust(0.012, 0.02, 0.985, 0.93, 0.08, 0.08)
    for column, (title, tiles) in enumerate(found.items()):
        axes[0, column].set_title(title, fontsize=9, loc="left")
        for row, tile in enumerate(tiles):
            axes[row, column].imshow(tile if len(tile) > 100 else fit(tile, 160))
            axes[row, column].set_axis_off()
    charts = right.subplots(2, 1, height_ratios=(1.6, 1), sharex=True)
    right.subplots_adjust(0.1, 0.1, 0.985, 0.94, 0, 0.22)
    draw_accuracy(charts[0], table, metrics)
    words = {v.name: "patches" if v.cell == 1 else f"cells of {v.cell} x {v.cell}" for v in module.token_levels}
    draw_losses(charts[1], table, words | {"image": "image"})
    for axis in charts:
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    small = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(Path(__file__).parent / "run.png", optimize=True)


if __name__ == "__main__":
    main()
