"""Presets of the augmentation: small data, and published recipes."""

from typing import Any, Literal

from hjepa_pl.data.augment.parts import PARTS

Preset = Literal["small", "jepa", "simclr", "deit3", "none"]

_RATIO = (3 / 4, 4 / 3)
CLEAN: dict[str, Any] = {
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "flip": 0.0,
    **{key: value for part in PARTS.values() for key, value in part.clean().items() if value is not None},
    "mixup": 0.0,
    "cutmix": 0.0,
}
"""Values at which a view is the clean image. (Keys whose value depends on another one are left out.)"""
PRESETS: dict[str, dict[str, Any]] = {
    # For small data; sources in the design's "start for small data".
    "small": CLEAN
    | {"crop_scale": (0.2, 1.0), "crop_ratio": _RATIO, "flip": 0.5, "gray": 0.2, "solarize": 0.1}
    | {"jitter": (0.4, 0.4, 0.2, 0.1), "jitter_prob": 0.8},
    # I-JEPA (arXiv:2301.08243) and its public in1k configs: crops alone.
    "jepa": CLEAN | {"crop_scale": (0.3, 1.0), "crop_ratio": _RATIO},
    # SimCLR (arXiv:2002.05709), appendix A, at color strength 1.
    "simclr": CLEAN
    | {"crop_scale": (0.08, 1.0), "crop_ratio": _RATIO, "flip": 0.5, "gray": 0.2, "blur": 0.5}
    | {"jitter": (0.8, 0.8, 0.8, 0.2), "jitter_prob": 0.8},
    # DeiT III (arXiv:2204.07118), section 3.2 and table 1.
    "deit3": CLEAN
    | {"crop_scale": (0.08, 1.0), "crop_ratio": _RATIO, "flip": 0.5, "three_augment": True}
    | {"jitter": (0.3, 0.3, 0.3, 0.0), "jitter_prob": 1.0, "mixup": 0.8, "cutmix": 1.0},
    "none": CLEAN,
}
