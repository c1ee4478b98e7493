"""Trained encoders for use elsewhere: read from a run or a file, with the transform of their images; no Lightning."""

from hjepa_pl.backbones.backbone import Backbone
from hjepa_pl.backbones.load import load_encoder
from hjepa_pl.backbones.transform import CleanTransform

__all__ = ["Backbone", "CleanTransform", "load_encoder"]
