"""A checkpoint's settings as today's code writes them."""

from collections.abc import Mapping
from typing import Any

from hjepa_pl.functional.settings import from_plain, to_plain
from hjepa_pl.losses.settings import RegularizerConfig
from hjepa_pl.masks import MaskConfig
from hjepa_pl.models.levels import LevelConfig
from hjepa_pl.models.settings import EncoderConfig, PredictorConfig, ProjectorConfig, PyramidConfig
from hjepa_pl.optim.settings import EMAConfig, OptimizerConfig
from hjepa_pl.types import ConfigError

_PARTS: dict[str, type] = {
    "encoder": EncoderConfig,
    "masks": MaskConfig,
    "predictor": PredictorConfig,
    "projector": ProjectorConfig,
    "pyramid": PyramidConfig,
    "ema": EMAConfig,
    "optimizer": OptimizerConfig,
}
_ADDED = {"pyramid": None, "level_scale": "raw", "experimental": False}
"""Keys that came later, with the value that computes what was computed without them."""


def complete_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a module's stored settings with the keys that came after they were stored, and defaults written out.

    Settings that today's code refuses are returned as they are.
    """
    settings = {**_ADDED, **stored}
    try:
        for key, kind in _PARTS.items():
            if settings.get(key) is not None:
                settings[key] = to_plain(from_plain(kind, settings[key], key))
        for key, kind in (("levels", LevelConfig), ("regularizers", RegularizerConfig)):
            settings[key] = [to_plain(from_plain(kind, item, key)) for item in settings.get(key) or []]
        for term in settings["regularizers"]:
            term["weight"] = from_plain(RegularizerConfig, term, "regularizers").factor
    except ConfigError:
        return dict(stored)
    return settings
