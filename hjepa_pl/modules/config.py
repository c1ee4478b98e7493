"""The settings of a module, read from what it is given, and from what a checkpoint of an earlier day holds."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from hjepa_pl.losses import PREDICTION_LOSSES, SIGReg
from hjepa_pl.losses.regularize import read_regularizer
from hjepa_pl.masks import MaskConfig
from hjepa_pl.models.config import SIZES, EncoderConfig, PredictorConfig, ProjectorConfig, PyramidConfig
from hjepa_pl.models.levels import read_levels, split_levels
from hjepa_pl.optim.config import EMAConfig, OptimizerConfig
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import as_typed, from_plain, to_plain

_PARTS: dict[str, type] = {
    "encoder": EncoderConfig,
    "masks": MaskConfig,
    "predictor": PredictorConfig,
    "projector": ProjectorConfig,
    "pyramid": PyramidConfig,
    "ema": EMAConfig,
    "optimizer": OptimizerConfig,
}
_OPTIONAL = ("pyramid", "ema")
"""Those that may be None: without it."""
_ADDED = {"pyramid": None, "level_scale": "raw", "experimental": False, "compile": False}
"""Keys that came later, with the value that computes what was computed without them."""


def read_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a module's arguments as settings classes: mappings are read, presets and defaults written out.

    Raises:
        ConfigError: If one is refused by itself.
    """
    settings = dict(given)
    if not isinstance(settings["compile"], bool):
        raise ConfigError(f"compile {settings['compile']!r} is refused; give true or false.")
    seed = settings["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"invalid `seed={seed!r}`: must be a whole number >= 0.")
    settings["encoder"] = _named(settings["encoder"])
    for key, kind in _PARTS.items():
        if settings[key] is not None or key not in _OPTIONAL:
            settings[key] = from_plain(kind, settings[key], key)
    token_levels, image_level = split_levels(read_levels(settings["levels"]))
    settings["levels"] = [*token_levels, *filter(None, [image_level])]
    terms = settings["regularizers"]
    if terms is None:
        terms = [] if image_level is None else [SIGReg()]
    if isinstance(terms, str | Mapping) or not hasattr(terms, "__iter__"):
        raise ConfigError(f"invalid `regularizers={as_typed(terms)}`: must be a list; write [{{kind: sigreg}}].")
    settings["regularizers"] = tuple(map(read_regularizer, terms))
    PREDICTION_LOSSES.find(settings["prediction"])
    return settings


def _named(encoder: Any) -> Any:
    """Return the settings of an encoder that is given by a size or a timm name; else what is given.

    Raises:
        ConfigError: If it is a network.
    """
    if isinstance(encoder, str):
        return EncoderConfig(**{"size" if encoder in SIZES else "name": encoder})  # type: ignore[arg-type]
    if isinstance(encoder, nn.Module):
        raise ConfigError(
            f"encoder is a network ({type(encoder).__name__}), and must be settings, from which the context encoder "
            "and its target are made and reloaded: give a timm name (encoder='vit_small_patch16_224'), and its "
            "weights as a file (encoder={'name': ..., 'pretrained': 'FILE'})."
        )
    return encoder


def complete_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a module's stored settings with the keys that came after they were stored, and defaults written out.

    Settings that today's code refuses are returned as they are.
    """
    try:
        settings = read_settings({**_ADDED, **stored})
    except ConfigError:
        return dict(stored)
    plain: dict[str, Any] = to_plain(settings)
    return plain
