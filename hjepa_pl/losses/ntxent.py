"""NT-Xent: an image is told from the others of the batch (SimCLR, arXiv:2002.05709, equation 1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.losses.view_loss import paired_views


def ntxent(views: Tensor, temperature: float = 0.1, hard_negatives: float | None = None, partial: int = 0) -> Tensor:
    """Return the cross entropy of finding an image's other view among the 2B - 1 other embeddings of two views.

    s = cosine similarity / temperature. The loss of an embedding is log(1 + sum_k w_k exp(s_k - s_positive)) over the
    2B - 2 embeddings of other images in both views, averaged over embeddings and over pairs of views. It says nothing
    of the embeddings' scale. The gradient reaches both views.

    With `hard_negatives` beta, w_k = exp(beta s_k) over its mean (Robinson et al., arXiv:2010.04592, equation 4, with
    tau_plus = 0): s is the same s, and the gradient goes through the weights, as in the paper's public code.

    Args:
        views: (V, B, P), float32, all ranks' images, B at least 2.
        temperature: 0.1 is the predecessor's C-JEPA (SimCLR: 0.1 to 0.5).
        hard_negatives: beta; None weighs all negatives alike.
        partial: Number of views in front that saw a part of the image only, see `paired_views`.
    """
    left, right = paired_views(F.normalize(views, dim=-1), partial)
    both = torch.cat([left, right], dim=1)  # (pairs, 2B, P)
    similarity = both @ both.mT / temperature
    positive = ((left * right).sum(dim=-1) / temperature).repeat(1, 2)  # (pairs, 2B)
    image = torch.arange(views.shape[1], device=views.device).repeat(2)
    negative = similarity.masked_fill(image[:, None] == image, -math.inf)
    if hard_negatives is None:
        total = negative.logsumexp(dim=-1)
    else:
        mean = (hard_negatives * negative).logsumexp(dim=-1) - math.log(len(image) - 2)
        total = ((1 + hard_negatives) * negative).logsumexp(dim=-1) - mean
    return -F.logsigmoid(positive - total).mean()
