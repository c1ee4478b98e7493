"""Encoder, predictor, projector and feature pyramid: plain PyTorch modules and their configs."""

from hjepa_pl.models.base import Encoder
from hjepa_pl.models.config import EncoderConfig, PredictorConfig, ProjectorConfig, PyramidConfig
from hjepa_pl.models.encoder import VisionEncoder
from hjepa_pl.models.families import ENCODERS, EncoderShape, build_encoder, measure
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.models.predictor import ContextFusion, Predictor
from hjepa_pl.models.projector import Projector
from hjepa_pl.models.pyramid import FeaturePyramid

__all__ = [
    "ENCODERS",
    "ContextFusion",
    "Encoder",
    "EncoderConfig",
    "EncoderShape",
    "FeaturePyramid",
    "LevelConfig",
    "Predictor",
    "PredictorConfig",
    "Projector",
    "ProjectorConfig",
    "PyramidConfig",
    "VisionEncoder",
    "build_encoder",
    "measure",
]
