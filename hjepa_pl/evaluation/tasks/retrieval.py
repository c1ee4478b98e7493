"""Image retrieval: test images as queries, training images as the gallery."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.evaluation.base import Features
from hjepa_pl.evaluation.tasks.base import Outcome, Task
from hjepa_pl.functional.stratify import stratified

GALLERY = 10_000
"""Most images of the gallery, and of the queries: the ranking of all pairs is sorted."""


class Retrieval(Task):
    """Mean average precision, and recall at 1, 5 and 10, by cosine similarity; an image of the same class is a hit."""

    title = "mAP"

    def __call__(self, features: Features) -> Outcome:
        """Return `map`, `recall1`, `recall5` and `recall10` in percent."""
        x, y, test_x, test_y, _ = features
        gallery, queries = (stratified(labels.cpu(), GALLERY, self.seed).to(y.device) for labels in (y, test_y))
        return Outcome(retrieval(x[gallery], y[gallery], test_x[queries], test_y[queries]))


def retrieval(gallery_x: Tensor, gallery_y: Tensor, query_x: Tensor, query_y: Tensor) -> dict[str, float]:
    """Rank a gallery by cosine similarity to each query.

    Average precision is the mean, over the gallery images of the query's class, of the precision at their ranks. A
    query is recalled at k if one of the k nearest images is of its class. Queries of a class that the gallery lacks are
    left out.

    Args:
        gallery_x: (N, D) features.
        gallery_y: (N,) int64 labels.
        query_x: (M, D) features, on the same device.
        query_y: (M,) int64 labels.

    Returns:
        `map`, `recall1`, `recall5`, `recall10` in percent; NaN if no query has an image of its class.
    """
    bank = F.normalize(gallery_x, dim=1).T.contiguous()
    rank = torch.arange(1, len(gallery_y) + 1, device=bank.device)
    found: list[Tensor] = []
    for x, y in zip(F.normalize(query_x, dim=1).split(256), query_y.split(256), strict=True):
        order = (x @ bank).argsort(dim=1, descending=True, stable=True)
        hit = gallery_y[order] == y[:, None]
        count = hit.sum(dim=1)
        precision = hit.cumsum(dim=1) / rank
        average = (precision * hit).sum(dim=1) / count
        recalled = [hit[:, :k].any(dim=1).to(average) for k in (1, 5, 10)]
        found.append(torch.stack([average, *recalled], dim=1)[count > 0])
    means = (100.0 * torch.cat(found).double().mean(dim=0)).tolist()
    return dict(zip(("map", "recall1", "recall5", "recall10"), means, strict=True))
