"""NT-Xent: contrastive loss of SimCLR (arXiv:2002.05709, equation 1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_pl.losses.base import Regularizer, Weight, as_views
from hjepa_pl.losses.view_loss import paired_views
from hjepa_pl.utils.settings import Positive, settings


@settings("regularizers")
class NTXent(Regularizer):
    r"""Normalized temperature-scaled cross entropy (SimCLR, https://arxiv.org/abs/2002.05709, equation 1).

    .. math::
        \ell_i = -\log \frac{e^{s_{i,p(i)}}}{e^{s_{i,p(i)}} + \sum_k w_{ik} e^{s_{ik}}}, \quad
        s_{ij} = \frac{z_i \cdot z_j}{\tau \lVert z_i \rVert \lVert z_j \rVert}

    p(i) is the other view of the image, k runs over the 2B - 2 embeddings of the other images in both views. The mean
    is over embeddings and pairs of views. It depends on angles only: alongside a view loss, which it does not keep from
    shrinking the projections to zero, add SIGReg. As a regularizer of a JEPA it is used in C-JEPA.

    With `hard_negatives` beta, w_ik = exp(beta s_ik) over its mean (https://arxiv.org/abs/2010.04592, equation 4, with
    tau_plus = 0), and the gradient includes the weights, as in the authors' code. Otherwise w_ik = 1.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> views = torch.randn(2, 16, 8)  # two views of 16 images
        >>> loss = NTXent(temperature=0.2)
        >>> float(loss(views)) > float(loss(views[:1].expand(2, -1, -1)))  # identical views
        True
    """

    kind = "ntxent"
    needs_views = True
    contrastive = True
    scale_invariant = True

    weight: Weight = 0.1
    """Weight of the term in the loss."""
    temperature: Positive = 0.1
    """Divisor of the cosine similarities (SimCLR: 0.1 to 0.5)."""
    hard_negatives: Positive | None = None
    """Concentration beta on the nearest negatives (0.5 to 2 in the paper); null weights all negatives alike."""

    def __call__(self, embeddings: Tensor, *, partial: int = 0, valid: Tensor | None = None, key: int = 0) -> Tensor:
        """Return the loss of two views or more, (V, B, D); B at least 2. See `Regularizer.__call__`."""
        views = as_views(embeddings)
        if len(views) < 2 or valid is not None:
            raise ValueError(f"NTXent compares views, and needs (V, B, D) with V >= 2, got {tuple(embeddings.shape)}.")
        left, right = paired_views(F.normalize(views, dim=-1), partial)
        both = torch.cat([left, right], dim=1)  # (pairs, 2B, D)
        similarity = both @ both.mT / self.temperature
        positive = ((left * right).sum(dim=-1) / self.temperature).repeat(1, 2)  # (pairs, 2B)
        image = torch.arange(views.shape[1], device=views.device).repeat(2)
        negative = similarity.masked_fill(image[:, None] == image, -math.inf)
        beta = self.hard_negatives
        if beta is None:
            total = negative.logsumexp(dim=-1)
        else:
            mean = (beta * negative).logsumexp(dim=-1) - math.log(len(image) - 2)
            total = ((1 + beta) * negative).logsumexp(dim=-1) - mean
        return -F.logsigmoid(positive - total).mean()
