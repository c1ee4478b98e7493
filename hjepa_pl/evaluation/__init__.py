"""Metrics of representations in plain PyTorch: k-NN and linear probes, effective rank, signs of collapse."""

from hjepa_pl.evaluation.base import Features, Probe
from hjepa_pl.evaluation.collapse import (
    effective_rank,
    image_share,
    position_share,
    power_shares,
    prediction_gain,
    spread,
    std_across_images,
)
from hjepa_pl.evaluation.knn import KNNProbe, knn_accuracy, knn_predict
from hjepa_pl.evaluation.linear import LinearProbe, LinearResult, fit_logistic, linear_probe
from hjepa_pl.evaluation.probes import PROBES, evaluate_probes

__all__ = [
    "PROBES",
    "Features",
    "KNNProbe",
    "LinearProbe",
    "LinearResult",
    "Probe",
    "effective_rank",
    "evaluate_probes",
    "fit_logistic",
    "image_share",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "position_share",
    "power_shares",
    "prediction_gain",
    "spread",
    "std_across_images",
]
