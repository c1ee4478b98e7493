"""Views that grow over the run, so that early steps cost fewer tokens."""

import math
from typing import Any, NamedTuple

from hjepa_pl.data.loading.image_spec import of_module
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import Count, Pair, PositiveFraction, invalid, settings
from hjepa_pl.utils.sizes import ImgSize, sides
from hjepa_pl.utils.wording import as_typed, either


class Growth(NamedTuple):
    """Sizes of the training views over the run."""

    sizes: tuple[tuple[int, int], ...]
    """Height and width in pixels, smallest first; the last is that of the encoder's images."""
    until: float
    """Fraction of the run at which the views reach the last size."""

    def at(self, fraction: float) -> tuple[int, int]:
        """Return height and width of the views at a fraction of the run in [0, 1].

        Each of the sizes before the last holds for the same share of `until`.
        """
        smaller = len(self.sizes) - 1
        return self.sizes[min(smaller, math.floor(smaller * fraction / self.until))]


@settings("resolution")
class ResolutionConfig:
    """Growth of the training views from a small size to the encoder's `img_size`, by one patch at a time.

    A smaller view has fewer patches, so early steps are cheaper and a time budget holds more of them (progressive
    learning: EfficientNetV2, arXiv:2104.00298, section 4). Progress is that of the learning rate's schedule, by steps
    or by the clock: a run that is resumed with a longer limit has the size of its new progress. Local crops keep their
    size; validation, probes and export have `img_size`.
    """

    start: Count | Pair[Count]
    """Side of the first views in pixels, or [height, width]: multiples of the patch size, below `encoder.img_size`."""
    until: PositiveFraction = 0.5
    """Fraction of the run at which the views reach `img_size`; each smaller size holds for an equal part of it."""

    def growth(self, img_size: ImgSize, patch: tuple[int, int]) -> Growth:
        """Return the sizes of the views.

        Args:
            img_size: Size of the encoder's images.
            patch: Height and width of its patches.

        Raises:
            ConfigError: If `start` is not a whole number of patches, or not below `img_size`.
        """
        full, start = sides(img_size), sides(self.start)
        if any(s % p for s, p in zip(start, patch, strict=True)) or _more(start, full) or start == full:
            fitting = [as_typed(s[0] if s[0] == s[1] else list(s)) for s in _between(patch, full, patch)[:-1]]
            use = f"use {either(fitting)}" if fitting else "remove resolution"
            problem = "must be a multiple of the encoder's patch_size, below its img_size"
            raise invalid("resolution.start", self.start, f"{problem}; {use}.")
        return Growth(_between(start, full, patch), self.until)


def _more(size: tuple[int, int], limit: tuple[int, int]) -> bool:
    return any(s > most for s, most in zip(size, limit, strict=True))


def _between(start: tuple[int, int], full: tuple[int, int], patch: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return the sizes from `start` to `full`; the side that grows more does so by one patch at a time."""
    more = [(f - s) // p for s, f, p in zip(start, full, patch, strict=True)]
    count = max(more)
    grown = [
        [s + p * round(m * i / max(1, count)) for i in range(count + 1)]
        for s, p, m in zip(start, patch, more, strict=True)
    ]
    return tuple(zip(*grown, strict=True))


def growth_of(config: ResolutionConfig | None, img_size: ImgSize, trainer: Any) -> Growth | None:
    """Return the growth of the views of a Trainer's run; None without one.

    Raises:
        ConfigError: As `ResolutionConfig.growth`; if the module has no patches, or does not tell its progress.
    """
    if config is None or trainer is None:
        return None
    patch = of_module(trainer, "patch_size")
    if patch is None or of_module(trainer, "progress") is None:
        raise ConfigError(
            "invalid `data.resolution`: the module has no `patch_size` and `progress`, by which the views grow; remove "
            "it, or use HJEPALightningModule."
        )
    return config.growth(img_size, patch)


def size_of_step(growth: Growth | None, trainer: Any) -> tuple[int, int] | None:
    """Return height and width of the views of the step that is about to run, the same on every rank.

    None where they do not grow, and in validation, whose held-out views are `img_size` throughout. Without a budget it
    is a function of the step alone.
    """
    if growth is None or trainer is None or not trainer.training:
        return None
    return growth.at(trainer.lightning_module.progress.done(trainer.global_step))
