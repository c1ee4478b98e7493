"""Base class of the parts of an augmentation that change pixels."""

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor

from hjepa_pl.data.augment.draws import Draws


class StepInfo(NamedTuple):
    """What a part may depend on besides images and draws."""

    seed: int
    step: int
    """Number of the global batch since the start of the run."""
    has_color: bool
    """False if all images are known to be gray, although they may have three channels."""


class Part(ABC):
    """A change of the pixels of a view, drawn for each image.

    A part is a frozen dataclass (`utils.settings.settings` adds bounds to the annotations). Its fields are its config
    keys, their defaults the values at which it leaves images as they are. `augmentation.extra` takes parts by import
    path, so this one, in `my_package/noise.py`, is used by `augmentation: {extra: {my_package.noise.Noise: 0.1}}`:

    Example:
        >>> from hjepa_pl.utils.settings import Fraction, settings
        >>> @settings("augmentation.extra.my_package.noise.Noise")
        ... class Noise(Part):
        ...     std: Fraction = 0.0
        ...
        ...     @property
        ...     def numbers(self):
        ...         return {128: 1}
        ...
        ...     def __call__(self, images, draws, info):
        ...         return images + self.std * (draws[128][:, :, None, None] - 0.5)
    """

    random: ClassVar[bool] = True
    """Whether two views of an image get different changes."""
    before_crop: ClassVar[bool] = False
    """Whether the part may change the native image before it is cropped, where that has fewer pixels than the view."""
    normalized: ClassVar[bool] = False
    """Whether the part takes normalized images rather than images in [0, 1]."""
    moves: ClassVar[bool] = False
    """Whether the content of an image is at other positions afterwards."""

    @property
    @abstractmethod
    def numbers(self) -> dict[int, int]:
        """Random streams, and how many uniform numbers of each a view of an image takes.

        Streams of the package are in `functional.counters.Stream`; parts outside it use numbers from 128 to 255.
        """

    @abstractmethod
    def __call__(self, images: Tensor, draws: Draws, info: StepInfo) -> Tensor:
        """Change the images.

        Args:
            images: (B, C, H, W) float32 in [0, 1], or normalized if `normalized`.
            draws: `draws[stream]` is (B, count) float32 uniform in [0, 1).
            info: Step and seed.

        Returns:
            (B, C, H, W) float32.
        """

    def on_gray(self) -> dict[str, Any]:
        """Return values, by key, with the same effect on gray images; keys that act on those alike are left out."""
        return {}

    @classmethod
    def clean(cls) -> dict[str, Any]:
        """Return the config keys and the values at which the part does nothing."""
        return {f.name: f.default for f in fields(cls)}  # type: ignore[arg-type]

    @classmethod
    def of(cls, value: Any) -> Self:
        """Return the part with a mapping of its keys, or with the value of its first key."""
        return cls(**value) if isinstance(value, dict) else cls(**{next(iter(cls.clean())): value})

    @property
    def on(self) -> bool:
        """Whether the part does anything."""
        return any(getattr(self, key) != value for key, value in self.clean().items())
