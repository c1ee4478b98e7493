"""The image levels: views of one image, pooled, projected and compared (LeJEPA, arXiv:2511.08544)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hjepa_pl.functional.choice import scores, smallest
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.losses.view_loss import view_loss, view_loss_by_image
from hjepa_pl.models.base import Block
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.objectives.networks import Networks
from hjepa_pl.objectives.record import EncodedCrops, Projections, StepRecord, TokenStream
from hjepa_pl.types import Counters, ViewBatch
from hjepa_pl.utils.distributed import gather_rows, own_rows


class ImageLevels:
    """Compare the pooled views of one image with one another. Both sides are online and get a gradient.

    Levels of several depths pool the tokens of one pass of the encoder, each through a projector of its own (deep
    supervision, arXiv:1409.5185: early blocks get a gradient that has not passed the later ones).

    Args:
        networks: The context encoder and the projectors.
        inner: Image levels before the deepest: depth and weight.
        level: The deepest: weight, kind of comparison and views.
        seed: Key of the patches that are kept (`level.keep`).

    Attributes:
        levels: Each level with its name in logs ('image' for the deepest, 'b2_image' for an inner one) and its
            projector, the deepest first.
    """

    def __init__(self, networks: Networks, inner: Sequence[LevelConfig], level: LevelConfig, seed: int) -> None:
        assert networks.projector is not None
        self.context_encoder, self.level, self.seed = networks.context_encoder, level, seed
        projectors = {} if networks.inner_projectors is None else dict(networks.inner_projectors.items())
        self.levels: list[tuple[LevelConfig, str, nn.Module]] = [
            (level, "image", networks.projector),
            *((each, each.name, projectors[each.name]) for each in inner),
        ]
        self.blocks = tuple(each.block for each in (*inner, level))

    def compare(
        self, batch: ViewBatch, context: Mapping[Block, Tensor], crops: EncodedCrops, record: StepRecord
    ) -> list[Projections]:
        """Add the image levels' losses.

        Args:
            batch: Full views.
            context: Tokens (M * B, K, D) of the visible patches by block; empty without token levels.
            crops: Local crops.
            record: Gets the terms 'image' and 'b2_image' (of an inner level), and the tokens of the first view where
                there are no token levels.

        Returns:
            Projections of all views at each level, the deepest first.
        """
        views = batch.views[1:] if self.level.masked_view == "replace" else batch.views
        rows, columns = self.context_encoder.grid_of(views[0])
        patches = rows * columns
        kept = self._draw_kept(batch.counters, len(views), patches)
        tokens = self.context_encoder(torch.cat(views), kept, blocks=self.blocks)
        if "tokens" not in record.streams:
            first = tokens[self.level.block][: len(batch.label)]
            every = torch.arange(patches, device=first.device).expand(len(first), -1)
            record.streams["tokens"] = TokenStream(first, every if kept is None else kept[: len(first)], patches)
        found = []
        for level, name, projector in self.levels:
            block = level.block
            full = tokens[block].mean(dim=1).unflatten(0, (len(views), -1))  # (V, B, D)
            parts = []
            if self.level.masked_view is not None:  # (M, B, D): the visible patches of each mask are a view
                parts.append(context[block].mean(dim=1).unflatten(0, (-1, len(batch.label))))
            parts += [crops.pooled[block]] if crops.pooled else []
            projection = _project([*parts, full], projector)
            weight = 1.0 if level is self.level else level.weight
            found.append(Projections(projection, sum(map(len, parts)), name, weight))
            self._add_loss(found[-1], level.weight, record)
        return found

    def _add_loss(self, projections: Projections, weight: float, record: StepRecord) -> None:
        """Add the distance between the views at one level, unless a regularizer is the whole objective."""
        if (compare := self.level.compare) == "none":
            return
        embedding, partial = projections.embedding, projections.partial
        by_image = lambda: own_rows(view_loss_by_image(embedding, partial, compare))  # noqa: E731
        record.add(projections.name, view_loss(embedding, partial, compare), weight, by_image)

    def _draw_kept(self, counters: Counters, views: int, patches: int) -> Tensor | None:
        """Return the patches of each view that are encoded, (views * B, K) view after view; None for all of them."""
        if (kept := self.level.kept(patches)) == patches:
            return None
        # The high half of a counter is hashed separately, so that each view draws patches of its own.
        number = torch.arange(views, device=counters.position.device)[:, None]
        position = (counters.position + (number << 32)).flatten()
        key = hash_int(self.seed, counters.epoch, Stream.VIEW_KEEP)
        return smallest(scores(key, position, patches), kept)


def _project(pooled: Sequence[Tensor], projector: nn.Module) -> Tensor:
    """Project pooled views, each (some, B, D), to (V, B of all ranks, P).

    The projector gets the rows of all ranks: its batch norm uses the statistics of the global batch, and a regularizer
    of its output needs no further collective.
    """
    joined = torch.cat(list(pooled))
    rows = gather_rows(joined.transpose(0, 1)).transpose(0, 1)
    embedding: Tensor = projector(rows.flatten(0, 1))
    return embedding.unflatten(0, (len(joined), -1))
