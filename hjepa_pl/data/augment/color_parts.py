"""Color jitter, grayscale and solarization as parts of an augmentation."""

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from hjepa_pl.data.augment import color
from hjepa_pl.data.augment.draws import Draws
from hjepa_pl.data.augment.part import Part, StepInfo
from hjepa_pl.functional.counters import Stream, hash_int

_ORDERS = tuple(permutations(range(4)))


@dataclass(frozen=True, kw_only=True)
class Jitter(Part):
    """Changes brightness, contrast, saturation and hue of some images, in an order that is drawn for the step."""

    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_prob: float = 0.0
    before_crop = True

    @property
    def numbers(self) -> dict[int, int]:
        """Four amounts, and whether the image is changed."""
        return {Stream.JITTER: 5}

    def __call__(self, images: Tensor, draws: Draws, info: StepInfo) -> Tensor:
        """Change the colors."""
        u = draws[Stream.JITTER]
        chosen = u[:, 4] < self.jitter_prob
        amount = (u[:, :4] * 2 - 1) * chosen[:, None]
        for i in _ORDERS[hash_int(info.seed, Stream.JITTER_ORDER, info.step) % len(_ORDERS)]:
            if not self.jitter[i]:
                continue
            by = amount[:, i] * self.jitter[i]
            if i == 3:
                # The conversion to hue and back is not exact, so images that are not chosen are left alone.
                images = torch.where(chosen[:, None, None, None], color.adjust_hue(images, by), images)
            else:
                change = (color.adjust_brightness, color.adjust_contrast, color.adjust_saturation)[i]
                images = change(images, 1 + by)
        return images

    def on_gray(self) -> dict[str, Any]:
        """Gray images have no saturation and hue."""
        return {"jitter": (*self.jitter[:2], 0.0, 0.0)}


@dataclass(frozen=True, kw_only=True)
class Gray(Part):
    """Converts some images to gray."""

    gray: float = 0.0
    before_crop = True

    @property
    def numbers(self) -> dict[int, int]:
        """Whether the image is converted."""
        return {Stream.GRAY: 1}

    def __call__(self, images: Tensor, draws: Draws, info: StepInfo) -> Tensor:
        """Convert to gray with probability `gray`."""
        chosen = draws[Stream.GRAY] < self.gray
        return torch.where(chosen[:, :, None, None], color.to_gray(images), images)

    def on_gray(self) -> dict[str, Any]:
        """Gray images stay as they are."""
        return {"gray": 0.0}


@dataclass(frozen=True, kw_only=True)
class Solarize(Part):
    """Inverts the bright pixel values of some images."""

    solarize: float = 0.0
    before_crop = True

    @property
    def numbers(self) -> dict[int, int]:
        """Whether the image is inverted."""
        return {Stream.SOLARIZE: 1}

    def __call__(self, images: Tensor, draws: Draws, info: StepInfo) -> Tensor:
        """Invert values of at least one half with probability `solarize`."""
        return color.solarize(images, draws[Stream.SOLARIZE][:, 0] < self.solarize)
