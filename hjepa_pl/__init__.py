"""Hierarchical joint-embedding predictive pretraining of vision transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hjepa_pl.backbones.load import load_encoder
    from hjepa_pl.data.datamodule import MultiDatasetDataModule
    from hjepa_pl.modules.finetune import HJEPAFinetuneModule
    from hjepa_pl.modules.hjepa import HJEPALightningModule

__version__ = "0.1.0"
__all__ = ["HJEPAFinetuneModule", "HJEPALightningModule", "MultiDatasetDataModule", "__version__", "load_encoder"]

_HOMES = {
    "HJEPAFinetuneModule": "hjepa_pl.modules.finetune",
    "HJEPALightningModule": "hjepa_pl.modules.hjepa",
    "MultiDatasetDataModule": "hjepa_pl.data.datamodule",
    "load_encoder": "hjepa_pl.backbones.load",
}


def __getattr__(name: str) -> Any:
    """Import the public names at first use, so that `hjepa --help` does not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hjepa_pl' has no attribute '{name}'")
