"""Pictures of a run while it trains."""

from hjepa_pl.callbacks.pictures.callback import PictureCallback

__all__ = ["PictureCallback"]
