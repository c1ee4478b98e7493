"""Local crops of a batch (multi-crop: SwAV, arXiv:2006.09882, section 3.2)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hjepa_pl.functional.boxes import Places, places_in
from hjepa_pl.functional.tokens import gather_tokens
from hjepa_pl.masks import MaskConfig, MaskGenerator, build_masks
from hjepa_pl.models.base import Block, Encoder
from hjepa_pl.models.predictor import CropContext
from hjepa_pl.objectives.networks import Depths
from hjepa_pl.objectives.record import EncodedCrops
from hjepa_pl.objectives.token_levels import TokenLevels
from hjepa_pl.types import ConfigError, Counters, Masks, ViewBatch


class LocalCrops:
    """Encode the local crops of a batch, once for all objectives.

    Strategies (`masks.strategy`): with 'global_only' the crops feed the image level only, and none of their patches is
    hidden. With 'global_with_local_context' their tokens join the visible patches in the predictor's context, each at
    its position on the first view's grid. With 'cross_crop_prediction' the first half of the crops is masked as the
    views are: their hidden cells are predicted too, from the visible patches of the first view and of these crops, and
    from the other crops, which are not masked.

    Args:
        encoder: The context encoder.
        tokens: The token levels; None without any, with strategy 'global_only'.
        depths: Blocks of the encoder to read.
        masks: Strategy, and the masks of crops.
        seed: Key of the crops' masks.
    """

    def __init__(
        self, encoder: Encoder, tokens: TokenLevels | None, depths: Depths, masks: MaskConfig, seed: int
    ) -> None:
        self.encoder, self.tokens, self.depths, self.config, self.seed = encoder, tokens, depths, masks, seed
        self._masks: dict[tuple[int, int], MaskGenerator] = {}

    def masks_of(self, grid: tuple[int, int]) -> MaskGenerator:
        """Return the masks of local crops with a grid of patches, built once.

        Raises:
            ConfigError: If the levels' cells or the masks are impossible on it.
        """
        if grid not in self._masks:
            levels = () if self.tokens is None else self.tokens.levels
            cells = tuple(int(level.cell) for level in levels)
            try:
                self._masks[grid] = build_masks(self.config, grid, cells, self.seed)
            except ConfigError as error:
                raise ConfigError(
                    f"invalid `masks.strategy=cross_crop_prediction`: local crops of {grid[0]} x {grid[1]} patches are "
                    f"too small; set a larger multicrop.local_size, or smaller cells: {str(error).rstrip('.')}."
                ) from None
        return self._masks[grid]

    def encode(self, batch: ViewBatch) -> EncodedCrops:
        """Encode the local crops of a batch; crops without context are `EncodedCrops()`."""
        crops, strategy = batch.local_views, self.config.strategy
        if not crops:
            return EncodedCrops()
        blocks = (*self.depths.image, *(() if strategy == "global_only" else self.depths.context))
        masked = len(crops) // 2 if strategy == "cross_crop_prediction" else 0
        full = self.encoder(torch.cat(crops[masked:]), blocks=blocks)
        part, masks = {}, None
        if masked:
            images = torch.cat(crops[:masked])
            masks = self.masks_of(self.encoder.grid_of(images))(_counters_of_crops(batch.counters, masked))
            part = self.encoder(images, masks.context, blocks)
        pooled = {}
        for block in self.depths.image:
            means = [tokens[block].mean(dim=1) for tokens in (part, full) if tokens]
            pooled[block] = torch.cat(means).unflatten(0, (len(crops), -1))
        if strategy == "global_only":
            return EncodedCrops(pooled)
        return EncodedCrops(pooled, *self._context(batch, full, part, masks, masked))

    def _context(
        self,
        batch: ViewBatch,
        full: Mapping[Block, Tensor],
        part: Mapping[Block, Tensor],
        masks: Masks | None,
        masked: int,
    ) -> tuple[CropContext, tuple[Tensor, ...]]:
        """Return the crops' tokens and queries for the predictor, and the targets of the queries.

        Args:
            batch: With boxes.
            full: Tokens of the crops that are not masked, by block.
            part: Visible tokens of the masked crops, by block.
            masks: Of the masked crops; None if there are none.
            masked: Number of masked crops of an image.
        """
        assert self.tokens is not None
        crops, first = batch.local_views, len(batch.views)
        if batch.boxes is None:
            raise ConfigError(
                f"the batch has no boxes, which masks.strategy={self.config.strategy} needs to locate the crops; "
                "give Trainer.fit a MultiDatasetDataModule with multicrop, or set masks.strategy to global_only."
            )
        boxes, view = batch.boxes[first:], batch.boxes[0]
        grid, view_grid = self.encoder.grid_of(crops[0]), self.encoder.grid
        tokens = _by_image(self.tokens.predictor_input(full), len(crops) - masked)
        seen = places_in(boxes[masked:], grid, view, view_grid)
        if masks is None:
            return CropContext(tokens, seen, ()), ()
        tokens = torch.cat([_by_image(self.tokens.predictor_input(part), masked), tokens], dim=1)
        visible = places_in(boxes[:masked], grid, view, view_grid)
        visible = visible.pick(_joint_index(masks.context, masked, grid[0] * grid[1]))
        seen = Places(*(torch.cat(pair, dim=1) for pair in zip(visible, seen, strict=True)))
        queries, targets = [], []
        maps = self.tokens.target_maps(torch.cat(crops[:masked]))
        for level, cells, target_map in zip(self.tokens.levels, masks.targets, maps, strict=True):
            index = cells.flatten(1)
            positions = places_in(boxes[:masked], grid, view, view_grid, int(level.cell))
            queries.append(positions.pick(_joint_index(index, masked, target_map.shape[1])))
            targets.append(_by_image(gather_tokens(target_map, index), masked))
        return CropContext(tokens, seen, tuple(queries)), tuple(targets)


def _counters_of_crops(counters: Counters, count: int) -> Counters:
    """Return counters of `count` crops of each image, crop by crop, so that each crop draws masks of its own."""
    number = torch.arange(1, count + 1, device=counters.position.device)[:, None]
    # The high half of a counter is hashed separately: a crop's counter equals that of no other image of the epoch.
    return counters._replace(position=(counters.position + (number << 32)).flatten())


def _by_image(tokens: Tensor, count: int) -> Tensor:
    """Reorder tokens (count * B, n, D), crop by crop, to (B, count * n, D)."""
    return tokens.unflatten(0, (count, -1)).transpose(0, 1).flatten(1, 2)


def _joint_index(index: Tensor, count: int, cells: int) -> Tensor:
    """Map indices (count * B, k) within a crop of `cells` cells to (B, count * k) within all crops of an image."""
    shift = torch.arange(count, device=index.device)[:, None, None] * cells
    return (index.unflatten(0, (count, -1)) + shift).transpose(0, 1).flatten(1)
