"""What the local crops of a batch give to the levels (multi-crop: SwAV, arXiv:2006.09882, section 3.2)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hjepa_pl.functional.boxes import Places, places_in
from hjepa_pl.functional.tokens import gather_tokens
from hjepa_pl.masks import MaskConfig, MaskGenerator, build_masks
from hjepa_pl.models.base import Block
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.models.predictor import CropContext
from hjepa_pl.objectives.record import Crops
from hjepa_pl.objectives.token_levels import TokenLevels
from hjepa_pl.types import ConfigError, Counters, Masks, ViewBatch


class LocalCrops(TokenLevels):
    """Encode the local crops, once, for all that reads them.

    Strategies (`masks.strategy`): with 'global_only' the crops feed the image level and nothing is hidden in them. With
    'global_with_local_context' their tokens stand beside the visible patches in the predictor's context, each at its
    place on the grid of the first view. With 'cross_crop_prediction' the first half of them is masked as the views are:
    their hidden cells are predicted too, from the visible patches of the first view and of these crops and from the
    other crops, which are seen in full.
    """

    image_level: LevelConfig | None
    mask_config: MaskConfig
    seed: int
    _crop_masks: dict[tuple[int, int], MaskGenerator]

    def crop_masks(self, grid: tuple[int, int]) -> MaskGenerator:
        """Return the masks of local crops of a grid, made once.

        Raises:
            ConfigError: If the levels' cells or the masks are impossible on it.
        """
        if grid not in self._crop_masks:
            cells = tuple(int(level.cell) for level in self.token_levels)
            try:
                self._crop_masks[grid] = build_masks(self.mask_config, grid, cells, self.seed)
            except ConfigError as error:
                raise ConfigError(
                    f"masks.strategy 'cross_crop_prediction' needs larger local crops than {grid[0]} x {grid[1]} "
                    f"patches (multicrop.local_size), or smaller cells: {str(error).rstrip('.')}."
                ) from None
        return self._crop_masks[grid]

    def encode_crops(self, batch: ViewBatch) -> Crops:
        """Return what a batch's local crops give."""
        crops, strategy = batch.local_views, self.mask_config.strategy
        if not crops:
            return Crops(None, None, ())
        blocks = (*self.depths.image, *(() if strategy == "global_only" else self.depths.context))
        hidden = len(crops) // 2 if strategy == "cross_crop_prediction" else 0
        full = self.context_encoder(torch.cat(crops[hidden:]), blocks=blocks)
        part, masks = {}, None
        if hidden:
            images = torch.cat(crops[:hidden])
            grid = self.context_encoder.grid_of(images)
            masks = self.crop_masks(grid)(_of_crops(batch.counters, hidden))
            part = self.context_encoder(images, masks.context, blocks)
        pooled = None
        if self.image_level is not None:
            of = [found[self.depths.image[0]].mean(dim=1) for found in (part, full) if found]
            pooled = torch.cat(of).unflatten(0, (len(crops), -1))
        if strategy == "global_only":
            return Crops(pooled, None, ())
        return Crops(pooled, *self._beside(batch, full, part, masks, hidden))

    def _beside(
        self,
        batch: ViewBatch,
        full: Mapping[Block, Tensor],
        part: Mapping[Block, Tensor],
        masks: Masks | None,
        hidden: int,
    ) -> tuple[CropContext, tuple[Tensor, ...]]:
        """Return what the crops give to the predictor, and the targets of what it is asked of them."""
        crops, first = batch.local_views, len(batch.views)
        if batch.boxes is None:
            raise ConfigError(
                f"the batch has no boxes, which masks.strategy '{self.mask_config.strategy}' needs to place the crops; "
                "give Trainer.fit a MultiDatasetDataModule with multicrop, or take strategy 'global_only'."
            )
        boxes, view = batch.boxes[first:], batch.boxes[0]
        encoder = self.context_encoder
        grid = encoder.grid_of(crops[0])
        tokens = _by_image(self.context_input(full), len(crops) - hidden)
        seen = places_in(boxes[hidden:], grid, view, encoder.grid)
        if masks is None:
            return CropContext(tokens, seen, ()), ()
        tokens = torch.cat([_by_image(self.context_input(part), hidden), tokens], dim=1)
        kept = places_in(boxes[:hidden], grid, view, encoder.grid)
        kept = kept.pick(_joint(masks.context, hidden, grid[0] * grid[1]))
        seen = Places(*(torch.cat(pair, dim=1) for pair in zip(kept, seen, strict=True)))
        asked, targets = [], []
        maps = self.target_maps(torch.cat(crops[:hidden]))
        for level, cells, target_map in zip(self.token_levels, masks.targets, maps, strict=True):
            index = cells.flatten(1)
            places = places_in(boxes[:hidden], grid, view, encoder.grid, int(level.cell))
            asked.append(places.pick(_joint(index, hidden, target_map.shape[1])))
            targets.append(_by_image(gather_tokens(target_map, index), hidden))
        return CropContext(tokens, seen, tuple(asked)), tuple(targets)


def _of_crops(counters: Counters, count: int) -> Counters:
    """Return counters of `count` crops of each image, crop by crop: each draws masks of its own."""
    number = torch.arange(1, count + 1, device=counters.position.device)[:, None]
    # The high half of a counter is hashed on its own, so that no image of an epoch has another's crop's number.
    return counters._replace(position=(counters.position + (number << 32)).flatten())


def _by_image(tokens: Tensor, count: int) -> Tensor:
    """Turn tokens (count * B, n, D), crop by crop, into (B, count * n, D)."""
    return tokens.unflatten(0, (count, -1)).transpose(0, 1).flatten(1, 2)


def _joint(index: Tensor, count: int, cells: int) -> Tensor:
    """Turn indices (count * B, k) within a crop of `cells` cells into (B, count * k) within all of an image's crops."""
    shift = torch.arange(count, device=index.device)[:, None, None] * cells
    return (index.unflatten(0, (count, -1)) + shift).transpose(0, 1).flatten(1)
