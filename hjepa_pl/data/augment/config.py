"""Config of the augmentation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field, fields
from typing import Annotated, Any, get_args

from annotated_types import Ge, Le, Lt
from pydantic import Strict, WrapValidator

from hjepa_pl.data.augment.part import Part
from hjepa_pl.data.augment.parts import make_parts
from hjepa_pl.data.augment.presets import CLEAN, PRESETS, Preset
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.settings import (
    AreaRange,
    Fraction,
    Hint,
    NonNegative,
    PositiveRange,
    from_plain,
    in_entry,
    settings,
)
from hjepa_pl.utils.wording import as_typed

_PRESET: Any = None
"""Default of the keys whose value is the preset's."""
_OR_PRESET = WrapValidator(lambda value, check: value if value is None else check(value))
_DEPENDENT = {
    # key: the key without which it has no effect, and its default
    "rand_magnitude": ("rand_augment", 9),
    "erase_scale": ("erase", (0.02, 0.33)),
    "erase_ratio": ("erase", (0.3, 3.3)),
}
_UpTo1 = Annotated[float, Ge(0), Le(1)]


@settings("augmentation")
class AugmentationConfig:
    """How a view is made from an image: a preset, and the keys that differ from it.

    A view is cropped, flipped and resized; then come rotation and translation, RandAugment, 3-Augment, jitter, gray,
    solarize, `extra`, normalization, blur and erasing; finally the views of two images are mixed. Each part acts on its
    own: 3-Augment adds to `gray`, `solarize` and `blur`. Without RandAugment, 3-Augment and `extra`, the colors of an
    image with fewer pixels than the view are changed before it is cropped. RandAugment and 3-Augment leave out their
    color operations on gray images.

    An instance holds a value for every key and its `preset` is None: instances that make the same views are equal.
    """

    preset: Preset | None = None
    """Source of the values that are not set: `small` (the default, for small data), `jepa` (I-JEPA), `simclr`, `deit3`
    (DeiT III) or `none` (the clean image, as in probes). The name in place of this mapping is the preset without
    changes: `augmentation: deit3`."""
    crop_scale: Annotated[AreaRange, _OR_PRESET] = _PRESET
    """Smallest and largest fraction of the image's area that a crop covers; [0.2, 1] in `small`."""
    crop_ratio: Annotated[PositiveRange, _OR_PRESET] = _PRESET
    """Smallest and largest width over height of a crop, as a multiple of the view's own (1 for square views): a crop
    at 1 is not distorted, whatever the shape of the view; [3/4, 4/3] in `small`. With [1, 1] here and in `crop_scale`
    images are resized as in probes and not cropped."""
    flip: Annotated[Fraction, _OR_PRESET] = _PRESET
    """Probability of a left-right flip; 0.5 in `small`."""
    jitter: Annotated[
        tuple[_UpTo1, _UpTo1, _UpTo1, Annotated[float, Ge(0), Le(0.5)]],
        Strict(False),
        Hint("strengths of brightness, contrast, saturation and hue"),
        _OR_PRESET,
    ] = _PRESET
    """Strength of brightness, contrast, saturation and hue changes; [0.4, 0.4, 0.2, 0.1] in `small`."""
    jitter_prob: Annotated[Fraction, _OR_PRESET] = _PRESET
    """Probability that the colors of an image are changed; 0.8 in `small`."""
    gray: Annotated[Fraction, _OR_PRESET] = _PRESET
    """Probability of converting an image to gray; 0.2 in `small`."""
    blur: Annotated[Fraction, _OR_PRESET] = _PRESET
    """Probability of a Gaussian blur (sigma 0.1 to 2 pixels of the view); 0 in `small`."""
    solarize: Annotated[Fraction, _OR_PRESET] = _PRESET
    """Probability of inverting the bright half of the values; 0.1 in `small`."""
    rotate: Annotated[float, Ge(0), Le(180), _OR_PRESET] = _PRESET
    """Largest rotation in either direction, in degrees; 0 in `small`."""
    translate: Annotated[float, Ge(0), Lt(1), _OR_PRESET] = _PRESET
    """Largest shift in either direction, as a fraction of width and height; 0 in `small`."""
    rand_augment: Annotated[int, Ge(0), _OR_PRESET] = _PRESET
    """Number of operations that RandAugment (arXiv:1909.13719) applies to each image; 0 in `small`."""
    rand_magnitude: Annotated[int, Ge(0), Le(30)] | None = None
    """Strength of RandAugment, one of torchvision's 31 bins, 0 to 30; null is 9 with `rand_augment`."""
    three_augment: Annotated[bool, _OR_PRESET] = _PRESET
    """3-Augment (arXiv:2204.07118): gray, solarize or blur, one of them for each image; false in `small`."""
    erase: Annotated[Fraction, _OR_PRESET] = _PRESET
    """Probability that a box of the view is set to 0, the mean of the data (Random Erasing, arXiv:1708.04896; 0.25 in
    DeiT). Not to noise, which no predictor can predict. 0 in `small`."""
    erase_scale: AreaRange | None = None
    """Smallest and largest fraction of the view's area that is erased; null is [0.02, 0.33] with `erase`."""
    erase_ratio: PositiveRange | None = None
    """Smallest and largest width over height of the erased box in pixels; null is [0.3, 3.3] with `erase`."""
    mixup: Annotated[NonNegative, _OR_PRESET] = _PRESET
    """Alpha of Mixup's Beta distribution (arXiv:1710.09412), 0 for none; 0 in `small`. Images are mixed in pairs, both
    of which stay in the batch, so a regularizer counts two images where there are two mixtures of them. With `cutmix`,
    each step uses one of the two with equal probability."""
    cutmix: Annotated[NonNegative, _OR_PRESET] = _PRESET
    """Alpha of CutMix's Beta distribution (arXiv:1905.04899), 0 for none; 0 in `small`."""
    extra: dict[str, Any] | None = field(default=None, hash=False)
    """Parts of your own by import path, applied after `solarize`: `{my_package.noise.Noise: 0.1}`, where `Noise` is a
    subclass of `hjepa_pl.data.Part` and 0.1 the value of its first key; or a mapping of its keys."""

    def __post_init__(self) -> None:
        """Take the preset's values, and reject keys that have no effect."""
        explicit = {f.name for f in fields(self) if getattr(self, f.name) is not None} - {"preset"}
        self._fill_from_preset()
        self._check_jitter(explicit)
        for key, (switch, default) in _DEPENDENT.items():
            if key in explicit and not getattr(self, switch):
                raise ConfigError(
                    f"invalid `augmentation.{key}={as_typed(getattr(self, key))}`: has no effect without {switch}; set "
                    f"augmentation.{switch}, or remove {key}."
                )
            if key not in explicit and getattr(self, switch):
                object.__setattr__(self, key, default)
        if not self.extra:
            object.__setattr__(self, "extra", None)
        make_parts(vars(self))  # raises for a wrong `extra`

    def _fill_from_preset(self) -> None:
        name = "small" if self.preset is None else self.preset
        missing = [key for key in CLEAN if getattr(self, key) is None]
        if self.preset is not None and not missing:
            raise ConfigError(
                f"invalid `augmentation.preset={name}`: has no effect where every other key is set; remove it."
            )
        for key in missing:
            object.__setattr__(self, key, PRESETS[name][key])
        object.__setattr__(self, "preset", None)

    def _check_jitter(self, explicit: set[str]) -> None:
        """Reject one of `jitter` and `jitter_prob` without the other; without effect, both become 0."""
        if "jitter_prob" in explicit and self.jitter_prob and not any(self.jitter):
            raise ConfigError(
                f"invalid `augmentation.jitter_prob={as_typed(self.jitter_prob)}`: has no effect with "
                f"augmentation.jitter={as_typed(self.jitter)}; remove it, or set the strengths."
            )
        if "jitter" in explicit and any(self.jitter) and not self.jitter_prob:
            raise ConfigError(
                f"invalid `augmentation.jitter={as_typed(self.jitter)}`: has no effect with "
                "augmentation.jitter_prob=0; set jitter_prob, or remove jitter."
            )
        if not self.jitter_prob or not any(self.jitter):
            object.__setattr__(self, "jitter", (0.0, 0.0, 0.0, 0.0))
            object.__setattr__(self, "jitter_prob", 0.0)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that are on, in the order in which they are applied."""
        return make_parts(vars(self))

    @property
    def whole(self) -> bool:
        """Whether a view is the clean image rather than a crop of it."""
        return self.crop_scale == (1.0, 1.0) and self.crop_ratio == (1.0, 1.0)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with one another."""
        return bool(self.mixup or self.cutmix)

    @property
    def moving_keys(self) -> dict[str, Any]:
        """Keys and values of what moves content within a view, or brings in that of another image."""
        parts = [(key, value) for part in self.parts if part.moves for key, value in self._typed(part).items() if value]
        return dict(parts) | {key: getattr(self, key) for key in ("mixup", "cutmix") if getattr(self, key)}

    def _typed(self, part: Part) -> dict[str, Any]:
        """Return keys of a part and their values, as they are typed."""
        own = {key: getattr(part, key) for key in part.clean()}
        names = [name for name, value in (self.extra or {}).items() if type(part).of(value) == part]
        return {f"extra.{names[0]}": (self.extra or {})[names[0]]} if own.keys() - set(vars(self)) else own

    def check_views(self, views: int) -> None:
        """Reject several views that would all be the same (mixing treats the views of an image alike).

        Raises:
            ConfigError: If nothing random makes them differ.
        """
        if views > 1 and self.whole and not self.flip and not any(part.random for part in self.parts):
            raise ConfigError(
                f"invalid `data.views={views}`: all views would be the same, because augmentation makes the clean "
                "image of each; set views to 1, or use another preset than none."
            )

    def check_batch_size(self, batch_size: int) -> None:
        """Reject an odd batch size where images are mixed in pairs."""
        if self.mixes and batch_size % 2:
            key = "mixup" if self.mixup else "cutmix"
            raise ConfigError(
                f"invalid `data.batch_size={batch_size}`: must be even with "
                f"augmentation.{key}={as_typed(getattr(self, key))}, which mixes images in pairs; set it to "
                f"{batch_size + 1}."
            )

    def check_gray_images(self, reason: str) -> None:
        """Reject color changes of gray images.

        Args:
            reason: Why all images are gray, for the message.
        """
        for part in self.parts:
            for key, value in part.on_gray().items():
                if getattr(part, key) != value:
                    raise ConfigError(
                        f"invalid `augmentation.{key}={as_typed(getattr(part, key))}`: changes colors, but all images "
                        f"are gray ({reason}); set it to {as_typed(value)}."
                    )


def augmentation_config(value: AugmentationConfig | Mapping[str, Any] | str) -> AugmentationConfig:
    """Return the config of a preset's name or of a mapping of keys.

    Raises:
        ConfigError: If the name or a key is not accepted.
    """
    names = get_args(Preset)
    if isinstance(value, AugmentationConfig | Mapping):
        return from_plain(AugmentationConfig, value, "augmentation")
    if value not in names:
        raise ConfigError(
            f"invalid `augmentation={as_typed(value)}`: must be {', '.join(names[:-1])} or {names[-1]}, or a "
            "mapping of keys."
        )
    return AugmentationConfig(preset=value)  # type: ignore[arg-type]


@contextmanager
def dataset_augmentation(name: str | None) -> Iterator[None]:
    """Rewrite errors of `augmentation` into those of a dataset's own.

    Args:
        name: The dataset; None for the augmentation of all, whose errors stay as they are.
    """
    try:
        yield
    except ConfigError as error:
        if name is None:
            raise
        sentence = str(error).replace("augmentation", "datasets.augmentation", 1)
        raise ConfigError(in_entry(sentence, "dataset", name)) from None
