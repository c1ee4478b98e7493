"""The image level: views of one image, pooled, projected and compared (LeJEPA, arXiv:2511.08544)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hjepa_pl.functional.choice import scores, smallest
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.losses.view_loss import view_loss, view_loss_by_image
from hjepa_pl.models.base import Block
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.objectives.networks import Depths, Networks
from hjepa_pl.objectives.record import EncodedCrops, Projections, StepRecord, TokenStream
from hjepa_pl.types import Counters, ViewBatch
from hjepa_pl.utils.distributed import gather_rows, own_rows


class ImageLevel:
    """Compare the pooled views of one image with one another. Both sides are online and get a gradient.

    Args:
        networks: The context encoder and the projector.
        level: Depth, weight and kind of comparison.
        depths: Blocks of the encoder to read.
        seed: Key of the patches that are kept (`level.keep`).
    """

    def __init__(self, networks: Networks, level: LevelConfig, depths: Depths, seed: int) -> None:
        assert networks.projector is not None
        self.context_encoder, self.projector = networks.context_encoder, networks.projector
        self.level, self.block, self.seed = level, depths.image[0], seed

    def compare(
        self, batch: ViewBatch, context: Mapping[Block, Tensor], crops: EncodedCrops, record: StepRecord
    ) -> Projections:
        """Add the image level's loss.

        Args:
            batch: Full views.
            context: Tokens (M * B, K, D) of the visible patches by block; empty without token levels.
            crops: Local crops.
            record: Gets the term 'image', and the tokens of the first view where there are no token levels.

        Returns:
            Projections of all views.
        """
        views = batch.views[1:] if self.level.masked_view == "replace" else batch.views
        rows, columns = self.context_encoder.grid_of(views[0])
        patches = rows * columns
        kept = self._draw_kept(batch.counters, len(views), patches)
        tokens = self.context_encoder(torch.cat(views), kept, blocks=(self.block,))[self.block]
        full = tokens.mean(dim=1).unflatten(0, (len(views), -1))  # (V, B, D)
        parts = []
        if self.level.masked_view is not None:  # (M, B, D): the visible patches of each mask are a view
            parts.append(context[self.block].mean(dim=1).unflatten(0, (-1, len(batch.label))))
        parts += [crops.pooled] if crops.pooled is not None else []
        if "tokens" not in record.streams:
            first = tokens[: len(batch.label)]
            every = torch.arange(patches, device=first.device).expand(len(first), -1)
            record.streams["tokens"] = TokenStream(first, every if kept is None else kept[: len(first)], patches)
        partial = sum(map(len, parts))
        projection = self._project([*parts, full])
        if (compare := self.level.compare) != "none":
            loss = view_loss(projection, partial, compare)
            by_image = lambda: own_rows(view_loss_by_image(projection, partial, compare))  # noqa: E731
            record.add("image", loss, self.level.weight, by_image)
        return Projections(projection, partial)

    def _draw_kept(self, counters: Counters, views: int, patches: int) -> Tensor | None:
        """Return the patches of each view that are encoded, (views * B, K) view after view; None for all of them."""
        if (kept := self.level.kept(patches)) == patches:
            return None
        # The high half of a counter is hashed separately, so that each view draws patches of its own.
        number = torch.arange(views, device=counters.position.device)[:, None]
        position = (counters.position + (number << 32)).flatten()
        key = hash_int(self.seed, counters.epoch, Stream.VIEW_KEEP)
        return smallest(scores(key, position, patches), kept)

    def _project(self, pooled: Sequence[Tensor]) -> Tensor:
        """Project pooled views, each (some, B, D), to (V, B of all ranks, P).

        The projector gets the rows of all ranks: its batch norm uses the statistics of the global batch, and a
        regularizer of its output needs no further collective.
        """
        joined = torch.cat(list(pooled))
        rows = gather_rows(joined.transpose(0, 1)).transpose(0, 1)
        return self.projector(rows.flatten(0, 1)).unflatten(0, (len(joined), -1))
