"""Settings of the losses that are one word."""

from typing import Literal

PredictionKind = str
"""Name of a prediction loss in `PREDICTION_LOSSES`, or the import path of a function outside the package."""
LevelScale = Literal["baseline", "raw"]
"""Divisor of a token level's loss: the loss of predicting each position's mean, or 1."""
Compare = Literal["mean", "pairwise", "none"]
"""What a view's projection is compared with: the mean of the full views, each other view, or nothing."""
