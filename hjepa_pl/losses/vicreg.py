"""VICReg: variance-invariance-covariance regularization (arXiv:2105.04906, section 4.1)."""

from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from hjepa_pl.losses.base import Regularizer, as_views
from hjepa_pl.losses.view_loss import paired_views
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import Hint, NonNegative, settings
from hjepa_pl.utils.wording import as_typed

_INVARIANCE = 25.0


@settings("regularizers")
class VICReg(Regularizer):
    r"""Variance, invariance and covariance terms (VICReg, https://arxiv.org/abs/2105.04906, equations 1 to 6).

    .. math::
        \mathcal{L} = \lambda \, \mathrm{inv}(Z, Z')
            + \frac{1}{V} \sum_v \left[ \mu \, \mathrm{var}(Z_v) + \nu \, \mathrm{cov}(Z_v) \right]

    Variance and covariance are averaged over views; the paper's equation 6 sums them over its two views, and its code
    (https://github.com/facebookresearch/vicreg) sums the covariance only, which is `covariance: 2` here. With one view
    there is no invariance term.

    Example:
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> z = torch.randn(2, 64, 8)  # two views of 64 images
        >>> loss = VICReg()
        >>> float(loss(0.01 * z)) > float(loss(z[:1].expand(2, -1, -1)))  # collapsed, against identical views
        True
    """

    kind = "vicreg"

    invariance: NonNegative = _INVARIANCE
    """Factor of the squared distance between views of one image (stream image only)."""
    variance: Annotated[float, Gt(0), Lt(float("inf")), Hint("at 0 nothing prevents collapse")] = 25.0
    """Factor of the hinge on the standard deviation."""
    covariance: NonNegative = 1.0
    """Factor of the squared off-diagonal covariances."""

    def __post_init__(self) -> None:
        """Reject an invariance factor where there is one view."""
        super().__post_init__()
        if self.stream != "image" and self.invariance != _INVARIANCE:
            raise ConfigError(
                f"invalid `regularizers.invariance={as_typed(self.invariance)}`: has no effect with "
                f"regularizers.stream={self.stream}, which has one view; remove it."
            )

    def __call__(self, embeddings: Tensor, *, partial: int = 0, valid: Tensor | None = None, key: int = 0) -> Tensor:
        """Return the loss; rows that are not `valid` count for no term. See `Regularizer.__call__`."""
        views = as_views(embeddings)
        terms = [self.variance * variance_term(v, valid) + self.covariance * covariance_term(v, valid) for v in views]
        spread = torch.stack(terms).mean()
        return spread + (self.invariance * invariance_term(views, partial) if len(views) > 1 else 0.0)

    @property
    def compares_views(self) -> bool:
        """True if there are several views and the invariance term has weight."""
        return self.stream == "image" and self.invariance != 0


def invariance_term(views: Tensor, partial: int = 0) -> Tensor:
    """Return the mean squared distance between the pairs of views (V, B, D) of one image, see `paired_views`."""
    left, right = paired_views(views, partial)
    return (left - right).square().mean()


def variance_term(samples: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean hinge max(0, 1 - std) over the D columns of (N, D).

    Args:
        samples: (N, D).
        valid: (N,), 1 for the rows that count and 0 for others, whose values are arbitrary but finite; None counts all.
    """
    x, n = _centered(samples, valid)
    return torch.relu(1.0 - torch.sqrt(x.square().sum(dim=0) / n + 1e-4)).mean()


def covariance_term(samples: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the sum of squared off-diagonal covariances of (N, D), divided by D; arguments as in `variance_term`."""
    x, n = _centered(samples, valid)
    covariance = (x.T @ x) / n
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.shape[1]


def _centered(samples: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """Return the samples less their mean, zero where they do not count, and the number that count less 1."""
    if valid is None:
        return samples - samples.mean(dim=0), len(samples) - 1
    n = valid.sum().clamp(min=2)
    return (samples - valid @ samples / n) * valid[:, None], n - 1
