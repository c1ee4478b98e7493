"""Losses in plain PyTorch: prediction losses, the view loss, and regularizers against collapse."""

from hjepa_pl.losses.base import Regularizer
from hjepa_pl.losses.ntxent import NTXent
from hjepa_pl.losses.prediction import PREDICTION_LOSSES, prediction_loss
from hjepa_pl.losses.regularize import REGULARIZERS, center_positions
from hjepa_pl.losses.sigreg import SIGReg, epps_pulley
from hjepa_pl.losses.vicreg import VICReg
from hjepa_pl.losses.view_loss import view_loss

__all__ = [
    "PREDICTION_LOSSES",
    "REGULARIZERS",
    "NTXent",
    "Regularizer",
    "SIGReg",
    "VICReg",
    "center_positions",
    "epps_pulley",
    "prediction_loss",
    "view_loss",
]
