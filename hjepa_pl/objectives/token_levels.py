"""The token levels of the hierarchical JEPA: targets, predictions and their losses."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from hjepa_pl.functional.tokens import gather_tokens, plain_norm, pool_cells
from hjepa_pl.losses.config import LevelScale, PredictionKind
from hjepa_pl.losses.prediction import position_baseline, prediction_by_image, prediction_loss
from hjepa_pl.models.base import Block, Encoder
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.models.predictor import ContextFusion, Predictor
from hjepa_pl.models.pyramid import FeaturePyramid, PyramidHeads, finest_level
from hjepa_pl.objectives.networks import Depths
from hjepa_pl.objectives.record import Crops, StepRecord, TokenStream
from hjepa_pl.types import LevelState, Masks


class TokenLevels(nn.Module):
    """Predict, from the visible patches of one view, what the target encoder makes of the hidden ones."""

    context_encoder: Encoder
    target_encoder: Encoder | None
    predictor: Predictor | None
    fusion: ContextFusion | None
    pyramid: FeaturePyramid | None
    pyramid_heads: PyramidHeads | None
    token_levels: tuple[LevelConfig, ...]
    depths: Depths
    prediction: PredictionKind
    level_scale: LevelScale
    pyramid_weight: float

    def predict_tokens(self, images: Tensor, masks: Masks, crops: Crops, record: StepRecord) -> dict[Block, Tensor]:
        """Add every token level's loss; return what the context encoder made of the visible patches, by block."""
        maps = self.target_maps(images)
        found = self.context_encoder(
            images, masks.context, (*self.depths.context, *self.depths.image, *self.depths.pyramid)
        )
        patches = self.context_encoder.grid[0] * self.context_encoder.grid[1]
        record.streams["tokens"] = TokenStream(found["last"], masks.context, patches)
        assert self.predictor is not None
        predictions = self.predictor(self.context_input(found), masks.context, masks.targets, crops.beside)
        scales: list[Tensor | float] = []
        for number, (level, target_map) in enumerate(zip(self.token_levels, maps, strict=True)):
            index = masks.targets[number].flatten(1)
            target, prediction = gather_tokens(target_map, index), predictions[number]
            here = prediction[:, : index.shape[1]]
            record.levels[level.name] = LevelState(here.detach(), target.detach(), index, target_map.detach())
            record.streams[level.name] = TokenStream(here, index, target_map.shape[1])
            if crops.targets:
                target = torch.cat([target, crops.targets[number]], dim=1)
            scales.append(position_baseline(target_map, self.prediction) if self.level_scale == "baseline" else 1.0)
            loss = prediction_loss(prediction, target, self.prediction)
            of_images = partial(prediction_by_image, prediction, target, self.prediction)
            record.add(level.name, loss, level.weight / scales[-1], of_images)
        if self.pyramid is not None:
            said = self._ask_pyramid(found, masks, predictions, maps)
            self._add_pyramid(said, scales, record)
        return found

    def context_input(self, found: Mapping[Block, Tensor]) -> Tensor:
        """Return what the predictor reads of the context encoder's outputs."""
        return found["last"] if self.fusion is None else self.fusion([found[b] for b in self.depths.context])

    def target_maps(self, images: Tensor) -> list[Tensor]:
        """Return every token level's target on its whole grid: (B, cells, D), normed after the averaging.

        The target encoder sees the full view, without gradient. (Where there is none, the context encoder does, with.)
        Tokens of blocks before the last are normed before the average, so that no token of large norm outweighs its
        neighbours.
        """
        encoder = self.context_encoder if self.target_encoder is None else self.target_encoder
        with torch.set_grad_enabled(self.target_encoder is None and torch.is_grad_enabled()):
            found = encoder(images, blocks=self.depths.target)
            grid = encoder.grid_of(images)
            return [plain_norm(pool_cells(found[v.block], grid, int(v.cell))) for v in self.token_levels]

    def _ask_pyramid(
        self,
        found: Mapping[Block, Tensor],
        masks: Masks,
        predictions: Sequence[Tensor],
        maps: Sequence[Tensor],
    ) -> list[tuple[int, Tensor, Tensor]]:
        """Return what the pyramid's maps say of hidden cells: number of the level, prediction, and target."""
        assert self.pyramid is not None
        assert self.pyramid_heads is not None
        fill = finest_level(self.token_levels)
        index = masks.targets[fill].flatten(1)
        made = self.pyramid(
            [found[b] for b in self.depths.pyramid],
            self.context_encoder.grid,
            masks.context,
            predictions[fill][:, : index.shape[1]],
            index,
        )
        return [
            (level, said, gather_tokens(maps[level], masks.targets[level].flatten(1)))
            for level, said in self.pyramid_heads(made, masks.targets)
        ]

    def _add_pyramid(
        self, said: Sequence[tuple[int, Tensor, Tensor]], scales: Sequence[Tensor | float], record: StepRecord
    ) -> None:
        """Add the mean of the levels' distances, each over the level's scale, as its own loss is."""

        def over_levels(distance: Callable[[Tensor, Tensor, PredictionKind], Tensor]) -> Tensor:
            return torch.stack([distance(p, t, self.prediction) / scales[i] for i, p, t in said]).mean(dim=0)

        record.add(
            "pyramid", over_levels(prediction_loss), self.pyramid_weight, lambda: over_levels(prediction_by_image)
        )
