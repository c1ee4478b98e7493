"""Regularizers of a step: each on its stream, the projections or the tokens at one position."""

from collections.abc import Sequence

from hjepa_pl.functional.counters import hash_int
from hjepa_pl.losses import Regularizer
from hjepa_pl.losses.regularize import regularize
from hjepa_pl.objectives.record import Projections, StepRecord


class Regularizers:
    """Terms that prevent collapse.

    Args:
        terms: Kind, stream and weight of each.
        seed: Key of the random directions, with the step.
    """

    def __init__(self, terms: Sequence[Regularizer], seed: int) -> None:
        self.terms, self.seed = terms, seed

    def add(self, step: int, projections: Sequence[Projections], record: StepRecord) -> None:
        """Add every regularizer.

        Args:
            step: Number of the batch.
            projections: Of each image level; the terms of stream 'image' act on each.
            record: Has the token streams, and gets the terms.
        """
        key = hash_int(self.seed, step)
        for term in self.terms:
            if term.stream == "image":
                for level in projections:
                    value = regularize(term, level.embedding, None, 0, key, level.partial)
                    record.add(term.name_at(level.name), value, term.weight * level.weight)
                    if term.kind == "sigreg":
                        record.n_ep[f"sigreg_{level.name}_n_ep"] = level.embedding.shape[1] * value.detach()
            else:
                stream = record.streams[term.stream]
                value = regularize(term, stream.embedding, stream.position, stream.positions, key)
                record.add(term.name, value, term.weight)
