"""Settings of `HJEPALightningModule`, read from its arguments."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from torch import nn

from hjepa_pl.losses import PREDICTION_LOSSES, Regularizer, SIGReg
from hjepa_pl.losses.config import LevelScale, PredictionKind
from hjepa_pl.losses.regularize import read_regularizer
from hjepa_pl.masks import MaskConfig
from hjepa_pl.models.config import SIZES, EncoderConfig, PredictorConfig, ProjectorConfig, PyramidConfig
from hjepa_pl.models.levels import LevelConfig, read_levels, split_levels
from hjepa_pl.objectives.targets import TargetNorm
from hjepa_pl.optim.config import EMAConfig, OptimizerConfig
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import from_plain, invalid, to_plain
from hjepa_pl.utils.wording import as_typed, either

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
"""Parts that may be null, for none."""


@dataclass(frozen=True, kw_only=True)
class ModuleSettings:
    """The arguments of `HJEPALightningModule`, each read and valid by itself; presets and defaults are written out."""

    encoder: EncoderConfig
    token_levels: tuple[LevelConfig, ...]
    inner_images: tuple[LevelConfig, ...]
    image_level: LevelConfig | None
    masks: MaskConfig
    predictor: PredictorConfig
    projector: ProjectorConfig
    pyramid: PyramidConfig | None
    prediction: PredictionKind
    level_scale: LevelScale
    target_norm: TargetNorm
    target_blocks: int
    regularizers: tuple[Regularizer, ...]
    ema: EMAConfig | None
    optimizer: OptimizerConfig
    time_budget: str | None
    seed: int
    experimental: bool
    compile: bool

    def arguments(self) -> dict[str, Any]:
        """Return the module's arguments as dicts, lists and scalars, as checkpoints hold them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        levels = [*values.pop("token_levels"), *values.pop("inner_images")]
        levels += [] if (image := values.pop("image_level")) is None else [image]
        return to_plain({"encoder": values.pop("encoder"), "levels": levels, **values})


def read_settings(arguments: Mapping[str, Any]) -> ModuleSettings:
    """Read a module's arguments, in which each settings object may be a mapping of its fields.

    Raises:
        ConfigError: If one of them is invalid by itself.
    """
    values = dict(arguments)
    _check_scalars(values)
    values["encoder"] = _encoder(values["encoder"])
    for key, kind in _PARTS.items():
        if values[key] is not None or key not in _OPTIONAL:
            values[key] = from_plain(kind, values[key], key)
    levels = split_levels(read_levels(values.pop("levels")))
    values |= {"token_levels": levels.token, "inner_images": levels.inner_images, "image_level": levels.image}
    if values["regularizers"] is None:
        values["regularizers"] = [] if values["image_level"] is None else [SIGReg()]
    terms = values["regularizers"]
    if isinstance(terms, str | Mapping) or not hasattr(terms, "__iter__"):
        raise ConfigError(f"invalid `regularizers={as_typed(terms)}`: must be a list; write [{{kind: sigreg}}].")
    values["regularizers"] = tuple(map(read_regularizer, terms))
    return ModuleSettings(**values)


def _check_scalars(values: Mapping[str, Any]) -> None:
    """Reject values of the arguments that are no settings classes."""
    for key in ("experimental", "compile"):
        if not isinstance(values[key], bool):
            raise ConfigError(f"invalid `{key}={as_typed(values[key])}`: must be true or false.")
    if not callable(PREDICTION_LOSSES.find(values["prediction"])):
        raise invalid("prediction", values["prediction"], "must be a function of predictions and targets.")
    for key, kind in (("level_scale", LevelScale), ("target_norm", TargetNorm)):
        if values[key] not in get_args(kind):
            raise invalid(key, values[key], f"must be {either(get_args(kind))}.")
    count = values["target_blocks"]
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise invalid("target_blocks", count, "must be a whole number >= 1.")
    seed = values["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"invalid `seed={as_typed(seed)}`: must be a whole number >= 0.")


def _encoder(encoder: Any) -> Any:
    """Return the settings of an encoder given by a size or a timm name; any other value as it is.

    Raises:
        ConfigError: If it is a network.
    """
    if isinstance(encoder, str):
        return EncoderConfig(**{"size" if encoder in SIZES else "name": encoder})  # type: ignore[arg-type]
    if isinstance(encoder, nn.Module):
        raise ConfigError(
            f"invalid `encoder={type(encoder).__name__}`: must be settings, not a network, since the target encoder is "
            "built from them too; use a timm name (encoder='vit_small_patch16_224'), with its weights from a file "
            "(encoder={'name': ..., 'pretrained': 'FILE'})."
        )
    return encoder
