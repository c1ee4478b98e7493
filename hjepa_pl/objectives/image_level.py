"""The image level of the hierarchical JEPA, and the regularisers of all levels."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hjepa_pl.functional.counters import hash_int
from hjepa_pl.losses.config import RegularizerConfig
from hjepa_pl.losses.regularize import regularize
from hjepa_pl.losses.view_loss import view_loss, view_loss_by_image
from hjepa_pl.models.base import Block, Encoder
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.models.projector import Projector
from hjepa_pl.objectives.networks import Depths
from hjepa_pl.objectives.record import Crops, StepRecord, TokenStream
from hjepa_pl.types import ViewBatch
from hjepa_pl.utils.distributed import gather_rows, own_rows


class ImageLevel(nn.Module):
    """Compare the pooled views of one image with one another, online on both sides."""

    context_encoder: Encoder
    projector: Projector | None
    image_level: LevelConfig | None
    regularizers: tuple[RegularizerConfig, ...]
    depths: Depths
    seed: int

    def compare_views(
        self, batch: ViewBatch, context: Mapping[Block, Tensor], crops: Crops, record: StepRecord
    ) -> tuple[Tensor, int]:
        """Add the image level's loss.

        Args:
            batch: With the full views.
            context: What the context encoder made of the visible patches; empty without token levels.
            crops: The local crops.
            record: Gets the loss, and the tokens of the first view where the token levels gave none.

        Returns:
            Projections (V, B of all ranks, P), and how many in front are of views that saw a part of the image.
        """
        level, block = self.image_level, self.depths.image[0]
        assert level is not None
        views = batch.views[1:] if level.masked_view == "replace" else batch.views
        tokens = self.context_encoder(torch.cat(views), blocks=self.depths.image)[block]
        full = tokens.mean(dim=1).unflatten(0, (len(views), -1))  # (V, B, D)
        part = [context[block].mean(dim=1)[None]] if level.masked_view is not None else []
        part += [crops.pooled] if crops.pooled is not None else []
        if "tokens" not in record.streams:
            first = tokens[: len(batch.label)]
            place = torch.arange(first.shape[1], device=first.device).expand(len(first), -1)
            record.streams["tokens"] = TokenStream(first, place, first.shape[1])
        partial = sum(map(len, part))
        projection = self._project([*part, full])
        if level.compare != "none":
            loss, compare = view_loss(projection, partial, level.compare), level.compare
            record.add("image", loss, level.weight, lambda: own_rows(view_loss_by_image(projection, partial, compare)))
        return projection, partial

    def _project(self, pooled: Sequence[Tensor]) -> Tensor:
        """Project pooled views, each (some, B, D), to (V, B of all ranks, P).

        The projector sees the rows of all ranks: its batch norm is that of the global batch on any machine, and a
        regulariser of its output needs no further collective.
        """
        assert self.projector is not None
        joined = torch.cat(list(pooled))
        rows = gather_rows(joined.transpose(0, 1)).transpose(0, 1)
        return self.projector(rows.flatten(0, 1)).unflatten(0, (len(joined), -1))

    def regularize(self, step: int, projection: Tensor | None, partial: int, record: StepRecord) -> None:
        """Add every regulariser, on the projections or on tokens at one position."""
        key = hash_int(self.seed, step)
        for term in self.regularizers:
            if term.stream == "image":
                assert projection is not None
                value = regularize(term, projection, None, 0, key, partial)
                if term.kind == "sigreg":  # about 1 where the projections are Gaussian
                    record.n_ep = projection.shape[1] * value.detach()
            else:
                stream = record.streams[term.stream]
                value = regularize(term, stream.embedding, stream.place, stream.positions, key)
            record.add(term.name, value, term.factor)
