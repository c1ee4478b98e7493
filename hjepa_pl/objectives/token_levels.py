"""The token levels: targets, predictions and losses (I-JEPA, arXiv:2301.08243, section 3; several levels)."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from hjepa_pl.functional.tokens import gather_tokens, plain_norm, pool_cells
from hjepa_pl.losses.config import LevelScale, PredictionKind
from hjepa_pl.losses.prediction import position_baseline, prediction_by_image, prediction_loss
from hjepa_pl.models.base import Block
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.objectives.networks import Depths, Networks
from hjepa_pl.objectives.pyramid_term import PyramidTerm
from hjepa_pl.objectives.record import EncodedCrops, StepRecord, TokenStream
from hjepa_pl.objectives.targets import TargetNorm, last_blocks, mean_of_blocks
from hjepa_pl.types import LevelState, Masks


class TokenLevels:
    """Predict the target encoder's tokens at hidden cells from the visible patches of one view.

    Args:
        networks: The encoders, the predictor and, if there are any, the fusion and the pyramid.
        levels: Token levels, finest first.
        depths: Blocks of the encoders to read.
        prediction: Kind of distance between prediction and target.
        level_scale: 'baseline' divides each level's loss by that of predicting each position's mean.
        pyramid_weight: Weight of the pyramid's term.
        target_norm: Normalization of the blocks' outputs that the targets are made of.
        target_blocks: Number of blocks, ending at a level's block, that its target is the mean of.
    """

    def __init__(
        self,
        networks: Networks,
        levels: tuple[LevelConfig, ...],
        depths: Depths,
        prediction: PredictionKind,
        level_scale: LevelScale,
        pyramid_weight: float = 0.0,
        target_norm: TargetNorm = "layer",
        target_blocks: int = 1,
    ) -> None:
        assert networks.predictor is not None
        self.context_encoder, self.target_encoder = networks.context_encoder, networks.target_encoder
        self.predictor, self.fusion = networks.predictor, networks.fusion
        self.levels, self.depths = levels, depths
        self.prediction: PredictionKind = prediction
        self.level_scale: LevelScale = level_scale
        self.target_norm: TargetNorm = target_norm
        depth = self.context_encoder.depth
        self.averaged = {level.block: last_blocks(level.block, target_blocks, depth) for level in levels}
        self.pyramid: PyramidTerm | None = None
        if networks.pyramid is not None and networks.pyramid_heads is not None:
            self.pyramid = PyramidTerm(
                networks.pyramid, networks.pyramid_heads, levels, depths.pyramid, pyramid_weight, prediction
            )

    def predict(self, images: Tensor, masks: Masks, crops: EncodedCrops, record: StepRecord) -> dict[Block, Tensor]:
        """Add the loss of every token level.

        Args:
            images: The view that is masked, (B, C, H, W).
            masks: Visible patches and target cells, of M masks of each image: M * B rows.
            crops: Local crops; with some strategies they add context tokens and targets.
            record: Gets the terms, the streams and the state of each level.

        Returns:
            Tokens of the visible patches, (M * B, K, D), by block of the context encoder.
        """
        maps, own = self.target_maps(images), len(images)
        blocks = (*self.depths.context, *self.depths.image, *self.depths.pyramid)
        copies = len(masks.context) // own
        views = images.repeat(copies, 1, 1, 1) if copies > 1 else images
        tokens = self.context_encoder(views, masks.context, blocks)
        grid = self.context_encoder.grid
        record.streams["tokens"] = TokenStream(_first(tokens["last"], own), masks.context[:own], grid[0] * grid[1])
        predictions = self.predictor(self.predictor_input(tokens), masks.context, masks.targets, crops.context)
        scales: list[Tensor | float] = []
        for number, (level, target_map) in enumerate(zip(self.levels, maps, strict=True)):
            index = masks.targets[number].flatten(1)
            target, prediction = gather_tokens(target_map, index), predictions[number]
            in_view = prediction[:, : index.shape[1]]  # the crops' predictions come after the view's
            record.levels[level.name] = LevelState(in_view.detach(), target.detach(), index, target_map.detach())
            record.streams[level.name] = TokenStream(_first(in_view, own), index[:own], target_map.shape[1])
            if crops.targets:
                target = torch.cat([target, crops.targets[number]], dim=1)
            scales.append(position_baseline(target_map, self.prediction) if self.level_scale == "baseline" else 1.0)
            loss = prediction_loss(prediction, target, self.prediction)
            by_image = partial(prediction_by_image, prediction, target, self.prediction, own)
            record.add(level.name, loss, level.weight / scales[-1], by_image)
        if self.pyramid is not None:
            self.pyramid.add(tokens, grid, masks, predictions, maps, scales, record)
        return tokens

    def predictor_input(self, tokens: Mapping[Block, Tensor]) -> Tensor:
        """Return the predictor's input (B, K, D): the last layer, or the fusion of several blocks."""
        return tokens["last"] if self.fusion is None else self.fusion([tokens[b] for b in self.depths.context])

    def target_maps(self, images: Tensor) -> list[Tensor]:
        """Return every token level's target on its whole grid: (B, cells, D), layer-normed after averaging over cells.

        The target encoder sees the full view and gets no gradient. Without a target encoder the context encoder makes
        the targets, with gradient. Tokens of blocks before the last are normalized before averaging too, so that no
        token of large norm outweighs its neighbors. Of several blocks, the mean is taken (`mean_of_blocks`).
        """
        encoder = self.context_encoder if self.target_encoder is None else self.target_encoder
        with torch.set_grad_enabled(self.target_encoder is None and torch.is_grad_enabled()):
            tokens = encoder(images, blocks=self.depths.target)
            grid = encoder.grid_of(images)
            means = {b: mean_of_blocks([tokens[i] for i in own], self.target_norm) for b, own in self.averaged.items()}
            return [plain_norm(pool_cells(means[v.block], grid, int(v.cell))) for v in self.levels]


def _first(rows: Tensor, count: int) -> Tensor:
    """Return the first rows; all of them without a node in the graph, which would reorder sums of gradients."""
    return rows if len(rows) == count else rows[:count]
