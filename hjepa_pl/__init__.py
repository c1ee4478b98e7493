"""Hierarchical joint-embedding predictive pretraining of vision transformers."""

__version__ = "0.1.0"

from hjepa_pl.modules.hjepa import HJEPALightningModule

__all__ = ["HJEPALightningModule", "__version__"]
