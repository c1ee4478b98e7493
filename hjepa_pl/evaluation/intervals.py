"""Bootstrap intervals over the test images."""

import numpy as np
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95


def accuracy_interval(correct: Tensor, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of an accuracy in percent.

    Args:
        correct: (M,) bool: whether each test image is classified correctly.
        seed: Of the resampling.
    """
    return _percentiles(100.0 * correct.double(), seed)


def difference_interval(correct: Tensor, other: Tensor, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two accuracies in points, by the paired bootstrap.

    The same test images are resampled for both, so that their difficulty cancels.

    Args:
        correct: (M,) bool, of the one classifier.
        other: (M,) bool, of the other, for the same images in the same order.
        seed: Of the resampling.
    """
    return _percentiles(100.0 * (correct.double() - other.double()), seed)


def _percentiles(values: Tensor, seed: int) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentiles of the mean over resamples of (M,) values with few distinct ones."""
    # Resampling images is a multinomial draw of how often each distinct value occurs.
    distinct, counts = np.unique(values.cpu().numpy(), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=RESAMPLES)
    low, high = np.percentile(drawn @ distinct / len(values), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
