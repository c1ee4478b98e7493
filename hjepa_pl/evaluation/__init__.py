"""How good a representation is: k-NN, linear probe and the signs of collapse, in plain PyTorch."""

from hjepa_pl.evaluation.collapse import (
    effective_rank,
    image_share,
    position_share,
    prediction_gain,
    std_across_images,
)
from hjepa_pl.evaluation.knn import knn_accuracy, knn_predict
from hjepa_pl.evaluation.linear import LinearResult, fit_logistic, linear_probe
from hjepa_pl.evaluation.probes import PROBES, judge

__all__ = [
    "PROBES",
    "LinearResult",
    "effective_rank",
    "fit_logistic",
    "image_share",
    "judge",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "position_share",
    "prediction_gain",
    "std_across_images",
]
