"""The pictures of a module: what it draws of a few images of the run."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hjepa_pl.evaluation.pictures.attention import AttentionRecorder, mean_query, rollout
from hjepa_pl.evaluation.pictures.maps import kept_cells, pca_maps, pixels
from hjepa_pl.evaluation.pictures.sheet import Column, Tile, fit, heat, sheet
from hjepa_pl.functional.tokens import gather_tokens
from hjepa_pl.models.base import Encoder
from hjepa_pl.objectives.token_levels import TokenLevels
from hjepa_pl.types import Counters, Masks
from hjepa_pl.utils.distributed import world_size

_DRAWS = 6
"""Masks of each image whose errors are averaged: one hides a part of the image only."""
_MAX_WEIGHTS = 5e7
"""Most attention weights of one layer that are held, of all heads: 200 MB."""


class Sample(NamedTuple):
    """A few images of the run, as the model sees them in training."""

    views: tuple[Tensor, ...]
    """Views (B, C, H, W) of the same B images, normalized."""
    counters: Counters
    """Of these images."""
    mean: tuple[float, ...] | None
    """Of each channel, for display; None if unknown."""
    std: tuple[float, ...] | None

    def tiles(self, view: int = 0) -> list[Tile]:
        """Return a view of each image for display."""
        return pixels(self.views[view], self.mean, self.std)


@contextlib.contextmanager
def looking(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode without gradients and without compiled code; then as it was."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        # Tables that are cached here are used in training too, where inference tensors are not allowed.
        with torch.inference_mode(False), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for each, mode in modes:
            each.training = mode


def pictures(module: Any, sample: Sample, when: str) -> Iterator[tuple[str, Callable[[], Image.Image | None]]]:
    """Yield the name of each picture that can be drawn of a module, and a function that draws it.

    Args:
        module: A `HJEPALightningModule`, or another of which some parts are there.
        sample: Images of the run.
        when: The state of the run, for the titles: "epoch 3".
    """
    masks, encoder = getattr(module, "masks", None), getattr(module, "encoder", None)
    tokens = getattr(module, "tokens", None) if masks is not None else None
    if isinstance(tokens, TokenLevels):
        levels = tokens
        yield "views", lambda: views_sheet(sample, _masks_of(masks, sample, 0), levels)
        # The statistics of target_norm=batch are over all ranks, of which one draws.
        if world_size() == 1 or levels.target_norm != "batch":
            yield "errors", lambda: error_sheet(sample, masks, levels, when)
    elif len(sample.views) > 1:
        yield "views", lambda: views_sheet(sample, None, None)
    if isinstance(encoder, Encoder):
        name = "target encoder" if getattr(module, "target_encoder", None) is encoder else "encoder"
        yield "pca", lambda: pca_sheet(sample, encoder, f"{when}, {name}")
        rows = attention_rows(encoder, sample)
        if rows:
            yield "attention", lambda: attention_sheet(sample, encoder, rows, f"{when}, {name}")


def _masks_of(masks: Any, sample: Sample, draw: int) -> Masks:
    """Return one mask of each image; another for every `draw`."""
    counters = sample.counters
    found = masks(counters._replace(epoch=counters.epoch + draw, step=counters.step + draw))
    count = len(sample.views[0])
    return Masks(found.context[:count], tuple(cells[:count] for cells in found.targets))


def views_sheet(sample: Sample, masks: Masks | None, tokens: TokenLevels | None) -> Image.Image:
    """Draw what each level sees: the context and the targets of the token levels, the views of the image level."""
    tiles = [fit(tile) for tile in sample.tiles()]
    columns = [Column("view 1", tiles)]
    if masks is not None and tokens is not None:
        grid = tokens.context_encoder.grid_of(sample.views[0])
        patches = grid[0] * grid[1]
        title = f"context\n{masks.context.shape[1]} of {patches} patches"
        columns.append(Column(title, kept_cells(tiles, masks.context, grid)))
        for level, cells in zip(tokens.levels, masks.targets, strict=True):
            own, cell = cells.flatten(1), int(level.cell)
            what = "patches" if cell == 1 else f"cells of {cell} x {cell}"
            count = len(set(own[0].tolist()))
            title = f"targets {level.name}\n{count} of {patches // cell**2} {what}"
            columns.append(Column(title, kept_cells(tiles, own, (grid[0] // cell, grid[1] // cell))))
    same = [n for n, view in enumerate(sample.views) if n and view.shape == sample.views[0].shape]
    columns += [Column(f"view {n + 1}", [fit(tile) for tile in sample.tiles(n)]) for n in same[:3]]
    note = "Images of the first batch. " + (
        "The context encoder sees the context; the targets are computed from the whole of view 1."
        if masks is not None
        else "The image level compares views of one image."
    )
    return sheet("Views and masks" if masks is not None else "Views", columns, note)


def error_sheet(sample: Sample, masks: Any, tokens: TokenLevels, when: str) -> Image.Image:
    """Draw the mean squared error of the predictions at each cell, over several masks of each image."""
    images = sample.views[0]
    grid = tokens.context_encoder.grid_of(images)
    maps = [target.float() for target in tokens.target_maps(images)]
    total = [torch.zeros(m.shape[:2], device=m.device) for m in maps]
    count = [torch.zeros_like(t) for t in total]
    for draw in range(_DRAWS):
        drawn = _masks_of(masks, sample, draw)
        context = tokens.context_encoder(images, drawn.context, tokens.depths.context or ("last",))
        predicted = tokens.predictor(tokens.predictor_input(context), drawn.context, drawn.targets, None)
        for i, cells in enumerate(drawn.targets):
            index = cells.flatten(1)
            error = (predicted[i].float() - gather_tokens(maps[i], index)).square().mean(dim=-1)
            total[i].scatter_add_(1, index, error)
            count[i].scatter_add_(1, index, torch.ones_like(error))
    columns = [Column("view 1", sample.tiles())]
    for level, errors, times in zip(tokens.levels, total, count, strict=True):
        cell = int(level.cell)
        values = torch.where(times > 0, errors / times, torch.nan).cpu()
        high = max(float(values.nanquantile(0.98)), 1e-6)
        shown = [heat(v.numpy(), 0, high) for v in values.unflatten(1, (grid[0] // cell, grid[1] // cell))]
        shown = [_as_large(tile, columns[0].tiles[0]) for tile in shown]
        mean = float(values.nanmean())
        columns.append(Column(f"{level.name}\nmean {mean:.2f}", shown, ("0", f"{high:.2f}")))
    note = f"Mean squared error of the predicted tokens, over {_DRAWS} masks an image; targets have mean square 1."
    if any(bool((times == 0).any()) for times in count):
        note += " White cells were hidden by no mask."
    return sheet(f"Prediction error ({when})", columns, note)


def pca_sheet(sample: Sample, encoder: Encoder, when: str) -> Image.Image:
    """Draw the first three principal components of the patch tokens as colors, and the first alone in gray."""
    images = sample.views[0]
    colors = pca_maps(encoder(images)["last"]).unflatten(1, encoder.grid_of(images)).numpy()
    eight = (colors * 255).round().astype(np.uint8)
    tiles = sample.tiles()
    columns = [Column("view 1", tiles), Column("components 1 to 3\nas red, green, blue", _grown(eight, tiles))]
    for i in range(3):
        gray = np.repeat(eight[..., i : i + 1], 3, axis=-1)
        columns.append(Column(f"component {i + 1}", _grown(gray, tiles)))
    note = "Principal components of all patch tokens shown. Alike patches have alike colors, also across images."
    return sheet(f"PCA of patch tokens ({when})", columns, note)


def attention_rows(encoder: Encoder, sample: Sample) -> int:
    """Return of how many images the attention weights can be held; 0 if of none."""
    rows, columns = encoder.grid_of(sample.views[0])
    heads = getattr(encoder.config, "num_heads", None) or 16
    return min(len(sample.views[0]), int(_MAX_WEIGHTS // (heads * (rows * columns) ** 2)))


def attention_sheet(sample: Sample, encoder: Encoder, rows: int, when: str) -> Image.Image | None:
    """Draw what the pooled embedding attends to at three depths, and the attention rollout.

    Returns:
        The sheet; None if the encoder has no attention among all of its patches.
    """
    images = sample.views[0][:rows]
    grid = encoder.grid_of(images)
    patches = grid[0] * grid[1]
    with AttentionRecorder() as recorder:
        encoder(images)
    weights = recorder.weights
    if not weights or any(w.shape != weights[0].shape or w.shape[-1] < patches for w in weights):
        return None
    depths = sorted({1, (len(weights) + 1) // 2, len(weights)})
    maps = {
        f"block {d}" + ("" if d > 1 else f" of {len(weights)}"): mean_query(weights[d - 1], patches) for d in depths
    }
    maps["rollout"] = mean_query(rollout(weights), patches)
    tiles = sample.tiles()[:rows]
    columns = [Column("view 1", tiles)]
    for title, values in maps.items():
        relative = (values * patches).cpu()
        # Nearly uniform attention is not blown up to a pattern.
        low, high = min(float(relative.quantile(0.01)), 0.8), max(float(relative.quantile(0.99)), 1.2)
        shown = [heat(v.numpy(), low, high) for v in relative.unflatten(1, grid)]
        columns.append(Column(title, [_as_large(t, tiles[0]) for t in shown], (f"{low:.1f}", f"{high:.1f}")))
    note = (
        "Attention to each patch, averaged over heads and over the queries of all patches, whose mean is the "
        "embedding; 1 is uniform. Rollout: over all blocks (Abnar & Zuidema, 2020)."
    )
    return sheet(f"Attention ({when})", columns, note)


def _grown(maps: Any, like: list[Tile]) -> list[Tile]:
    return [_as_large(tile, like[0]) for tile in maps]


def _as_large(tile: Tile, like: Tile) -> Tile:
    """Return a map with hard edges, of the size in which an image is shown."""
    like = fit(like)
    rows = np.arange(like.shape[0]) * tile.shape[0] // like.shape[0]
    columns = np.arange(like.shape[1]) * tile.shape[1] // like.shape[1]
    return tile[rows][:, columns]
