"""Auxiliary loss of the feature pyramid: the token levels' targets, regressed from its maps."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from hjepa_pl.functional.tokens import gather_tokens
from hjepa_pl.losses.config import PredictionKind
from hjepa_pl.losses.prediction import prediction_by_image, prediction_loss
from hjepa_pl.models.base import Block
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.models.pyramid import FeaturePyramid, PyramidHeads, finest_level
from hjepa_pl.objectives.record import StepRecord
from hjepa_pl.types import Masks


class PyramidTerm:
    """Build the pyramid from context tokens and predictions, and predict the hidden cells of each level from its maps.

    Args:
        pyramid: The network that makes the maps.
        heads: Its linear heads, one for each level.
        levels: Token levels.
        blocks: Blocks of the context encoder that the pyramid reads.
        weight: Weight of the term.
        prediction: Kind of distance, as at the token levels.
    """

    def __init__(
        self,
        pyramid: FeaturePyramid,
        heads: PyramidHeads,
        levels: Sequence[LevelConfig],
        blocks: Sequence[Block],
        weight: float,
        prediction: PredictionKind,
    ) -> None:
        self.pyramid, self.heads = pyramid, heads
        self.finest = finest_level(levels)
        self.blocks, self.weight, self.prediction = blocks, weight, prediction

    def add(
        self,
        tokens: Mapping[Block, Tensor],
        grid: tuple[int, int],
        masks: Masks,
        predictions: Sequence[Tensor],
        target_maps: Sequence[Tensor],
        scales: Sequence[Tensor | float],
        record: StepRecord,
    ) -> None:
        """Add the mean over levels of the distance, each divided by the level's scale as its own loss is.

        Args:
            tokens: Context tokens (M * B, K, D) by block, of M masks of each image.
            grid: Rows and columns of patches.
            masks: Visible patches and target cells, M * B rows.
            predictions: Of each level, (M * B, Q, D) or longer; the finest fill the holes of the map.
            target_maps: Of each level, (B, cells, D).
            scales: Of each level.
            record: Gets the term 'pyramid'.
        """
        index = masks.targets[self.finest].flatten(1)
        filling = predictions[self.finest][:, : index.shape[1]]
        maps = self.pyramid([tokens[b] for b in self.blocks], grid, masks.context, filling, index)
        pairs = [
            (prediction, gather_tokens(target_maps[level], masks.targets[level].flatten(1)), scales[level])
            for level, prediction in self.heads(maps, masks.targets)
        ]

        def mean_of(distance: Callable[[Tensor, Tensor, PredictionKind], Tensor]) -> Tensor:
            return torch.stack([distance(p, t, self.prediction) / scale for p, t, scale in pairs]).mean(dim=0)

        by_image = partial(prediction_by_image, images=len(target_maps[0]))
        record.add("pyramid", mean_of(prediction_loss), self.weight, lambda: mean_of(by_image))
