"""How a view is made: the parts that a user may set."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from hjepa_pl.data.augment.presets import CLEAN, PRESETS, Preset
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.numbers import check_number, check_range, check_whole
from hjepa_pl.utils.settings import from_plain

_NEEDS = {
    # part: what it belongs to, and its value where that is on
    "rand_magnitude": ("rand_augment", 9),
    "erase_scale": ("erase", (0.02, 0.33)),
    "erase_ratio": ("erase", (0.3, 3.3)),
}


def _of_preset() -> Any:
    """Return the default of a part: not given. `AugmentationConfig` puts the preset's value in its place."""
    return field(default=None)


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """How a view is made from an image: a preset, and the parts that are to differ from it.

    A view is cropped, flipped and resized; then come rotation and shift, RandAugment, 3-Augment, jitter, grey,
    solarise, normalisation, blur and erasing; at last the views of two images are mixed. Each part acts on its own:
    3-Augment beside `gray`, `solarize` or `blur` adds to them. Without RandAugment and 3-Augment, an image of fewer
    pixels than the view is changed in colour before it is cropped. On images without colour, RandAugment and 3-Augment
    draw from what is left of their operations without colour and grey.

    Once made, a record holds a value for every part, and `preset` is None: two records that make the same views are
    equal.
    """

    preset: Preset | None = None
    """Where the parts that are not given come from: `small` (the default, for small data), `jepa` (I-JEPA), `simclr`,
    `deit3` (DeiT III) or `none` (the clean image, as probes see it). A word in place of this mapping is the preset as
    it is: `augmentation: deit3`."""
    crop_scale: tuple[float, float] = _of_preset()
    """Share of the image's area that a crop covers, smallest and largest; [0.2, 1] in `small`."""
    crop_ratio: tuple[float, float] = _of_preset()
    """Width over height of a crop, smallest and largest, as a multiple of the view's own (1 for square views): a crop
    at 1 is not distorted, whatever the shape of the view; [3/4, 4/3] in `small`. With [1, 1] here and in `crop_scale`
    there is no crop but the resize of clean images."""
    flip: float = _of_preset()
    """Probability of a left-right flip; 0.5 in `small`."""
    jitter: tuple[float, float, float, float] = _of_preset()
    """Strength of brightness, contrast, saturation and hue changes; [0.4, 0.4, 0.2, 0.1] in `small`."""
    jitter_prob: float = _of_preset()
    """Probability that an image's colours are changed; 0.8 in `small`."""
    gray: float = _of_preset()
    """Probability of turning an image grey; 0.2 in `small`."""
    blur: float = _of_preset()
    """Probability of a Gaussian blur (sigma .1 to 2 pixels of the view); 0 in `small`."""
    solarize: float = _of_preset()
    """Probability of inverting the bright half of the values; 0.1 in `small`."""
    rotate: float = _of_preset()
    """Largest rotation either way, in degrees; 0 in `small`."""
    translate: float = _of_preset()
    """Largest shift either way, as a share of the side; 0 in `small`."""
    rand_augment: int = _of_preset()
    """Operations that RandAugment (arXiv:1909.13719) applies to each image, 0 for none; 0 in `small`."""
    rand_magnitude: int | None = None
    """Strength of RandAugment, one of torchvision's 31 bins, 0 to 30; 9 if not given."""
    three_augment: bool = _of_preset()
    """3-Augment (arXiv:2204.07118): grey, solarise or blur, one of them for each image; false in `small`."""
    erase: float = _of_preset()
    """Probability that a box of the view is set to 0, the data's mean (Random Erasing, arXiv:1708.04896; .25 in DeiT).
    Not to noise: a predictor would be asked for what cannot be predicted. 0 in `small`."""
    erase_scale: tuple[float, float] | None = None
    """Share of the view's area that is erased, smallest and largest; [0.02, 0.33] if not given."""
    erase_ratio: tuple[float, float] | None = None
    """Width over height of the erased box in pixels, smallest and largest; [0.3, 3.3] if not given."""
    mixup: float = _of_preset()
    """Alpha of Mixup's Beta distribution (arXiv:1710.09412), 0 for none; 0 in `small`. Images are mixed in pairs, both
    of which stay in the batch, so that a regulariser counts two images where there are two mixtures of them. Beside
    `cutmix`, each step takes one of the two by the toss of a coin."""
    cutmix: float = _of_preset()
    """Alpha of CutMix's Beta distribution (arXiv:1905.04899), 0 for none; 0 in `small`."""

    def __post_init__(self) -> None:
        given = {f.name for f in fields(self) if getattr(self, f.name) is not None} - {"preset"}
        self._resolve()
        self._check_ranges()
        self._check_jitter(given)
        for key, (of, value) in _NEEDS.items():
            if key in given and not getattr(self, of):
                raise ConfigError(
                    f"`augmentation.{key}={_shown(getattr(self, key))}` does nothing without {of}: "
                    f"set augmentation.{of}, or remove {key}."
                )
            if key not in given and getattr(self, of):
                object.__setattr__(self, key, value)

    def _resolve(self) -> None:
        """Take the preset's value for each part that is not given."""
        name = "small" if self.preset is None else self.preset
        if name not in PRESETS:
            raise ConfigError(
                f"`augmentation={name}` is not a preset: use one of {', '.join(get_args(Preset))}, or a "
                "mapping of parts."
            )
        missing = [key for key in CLEAN if getattr(self, key) is None]
        if self.preset is not None and not missing:
            raise ConfigError(
                f"`augmentation.preset={name}` does nothing where every part is given: remove it, or the parts."
            )
        for key in missing:
            object.__setattr__(self, key, PRESETS[name][key])
        object.__setattr__(self, "preset", None)

    def _check_ranges(self) -> None:
        for key, high in (("crop_scale", 1.0), ("crop_ratio", None), ("erase_scale", 1.0), ("erase_ratio", None)):
            value = getattr(self, key)
            if value is not None:
                limits = (0.0,) if high is None else (0.0, high)
                object.__setattr__(self, key, check_range(f"augmentation.{key}", value, *limits))
        for key in ("flip", "jitter_prob", "gray", "blur", "solarize", "erase"):
            check_number(f"augmentation.{key}", getattr(self, key), 0.0, 1.0)
        check_number("augmentation.rotate", self.rotate, 0.0, 180.0)
        check_number("augmentation.translate", self.translate, 0.0, 0.99)
        check_number("augmentation.mixup", self.mixup, 0.0)
        check_number("augmentation.cutmix", self.cutmix, 0.0)
        check_whole("augmentation.rand_augment", self.rand_augment, 0)
        if self.rand_magnitude is not None:
            check_whole("augmentation.rand_magnitude", self.rand_magnitude, 0)
            check_number("augmentation.rand_magnitude", self.rand_magnitude, 0, 30)
        if not isinstance(self.three_augment, bool):
            raise ConfigError(f"`augmentation.three_augment={self.three_augment!r}` is refused: give true or false.")

    def _check_jitter(self, given: set[str]) -> None:
        if not isinstance(self.jitter, tuple | list) or len(self.jitter) != 4:
            raise ConfigError(
                f"`augmentation.jitter={self.jitter!r}` is refused: give four numbers for brightness, contrast, "
                "saturation and hue."
            )
        for value, (name, high) in zip(
            self.jitter, (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)), strict=True
        ):
            check_number(f"augmentation.jitter ({name})", value, 0.0, high)
        strengths = tuple(float(v) for v in self.jitter)
        if "jitter_prob" in given and self.jitter_prob and not any(strengths):
            raise ConfigError(
                f"`augmentation.jitter_prob={self.jitter_prob}` does nothing where jitter is {list(strengths)}: "
                "remove it, or give the strengths."
            )
        if "jitter" in given and any(strengths) and not self.jitter_prob:
            raise ConfigError(
                f"`augmentation.jitter={list(strengths)}` does nothing where jitter_prob is 0: set it, "
                "or remove jitter."
            )
        off = not self.jitter_prob or not any(strengths)
        object.__setattr__(self, "jitter", (0.0, 0.0, 0.0, 0.0) if off else strengths)
        object.__setattr__(self, "jitter_prob", 0.0 if off else self.jitter_prob)

    @property
    def whole(self) -> bool:
        """Whether a view is the clean image rather than a crop of it."""
        return self.crop_scale == (1.0, 1.0) and self.crop_ratio == (1.0, 1.0)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with one another."""
        return bool(self.mixup or self.cutmix)

    def check_views(self, views: int) -> None:
        """Refuse several views that would all be the same: mixing treats the views of an image alike."""
        drawn = (self.flip, self.jitter_prob, self.gray, self.blur, self.solarize, self.rotate, self.translate)
        if views > 1 and self.whole and not any((*drawn, self.rand_augment, self.three_augment, self.erase)):
            raise ConfigError(
                f"`augmentation` makes the clean image of every view, so `views={views}` would be the same one {views} "
                "times: set views to 1, or take another preset than none."
            )

    def check_batch_size(self, batch_size: int) -> None:
        """Refuse a batch that does not come in pairs, where images are mixed."""
        if self.mixes and batch_size % 2:
            key = "mixup" if self.mixup else "cutmix"
            raise ConfigError(
                f"`batch_size={batch_size}` is refused, augmentation.{key}={getattr(self, key):g} mixes images in "
                f"pairs: set it to {batch_size + 1}."
            )

    def check_gray_images(self, reason: str) -> None:
        """Refuse what does nothing to images without colour."""
        for key, value in (
            ("augmentation.jitter (saturation)", self.jitter[2]),
            ("augmentation.jitter (hue)", self.jitter[3]),
            ("augmentation.gray", self.gray),
        ):
            if value:
                raise ConfigError(
                    f"`{key}={value}` would do nothing to images without colour ({reason}): set it to 0 (beside "
                    "`preset` if there is one)."
                )


def augmentation_config(value: AugmentationConfig | Mapping[str, Any] | str) -> AugmentationConfig:
    """Return the record of a preset's name, of a mapping of parts, or itself.

    Raises:
        ConfigError: For a word that is no preset, and for parts that are refused.
    """
    if isinstance(value, str):
        return AugmentationConfig(preset=value)  # type: ignore[arg-type]
    if not isinstance(value, AugmentationConfig | Mapping):
        words = ", ".join(get_args(Preset))
        raise ConfigError(f"`augmentation={value}` is refused: give one of {words}, or a mapping of parts.")
    return from_plain(AugmentationConfig, value, "augmentation")


@contextmanager
def of_dataset(name: str) -> Iterator[None]:
    """Say, of an augmentation that is refused, that it is a dataset's own."""
    try:
        yield
    except ConfigError as error:
        sentence = str(error).replace("augmentation", f"datasets.augmentation (of {name})", 1)
        raise ConfigError(sentence) from None


def _shown(value: object) -> object:
    """Return a value as a config holds it."""
    return list(value) if isinstance(value, tuple) else value
