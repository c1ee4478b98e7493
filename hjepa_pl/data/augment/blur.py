"""Random Gaussian blur."""

from dataclasses import dataclass

from torch import Tensor

from hjepa_pl.data.augment import color
from hjepa_pl.data.augment.crop_resize import apply_axes
from hjepa_pl.data.augment.draws import Draws
from hjepa_pl.data.augment.part import Part, StepInfo
from hjepa_pl.functional.counters import Stream


@dataclass(frozen=True, kw_only=True)
class Blur(Part):
    """Blurs some images by a Gaussian of 0.1 to 2 pixels."""

    blur: float = 0.0
    normalized = True

    @property
    def numbers(self) -> dict[int, int]:
        """Whether the image is blurred, and the width of the Gaussian."""
        return {Stream.BLUR: 2}

    def __call__(self, images: Tensor, draws: Draws, info: StepInfo) -> Tensor:
        """Blur with probability `blur`."""
        return apply_axes(images, *self.matrices(draws, (images.shape[2], images.shape[3])))

    def matrices(self, draws: Draws, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the blur of the rows, (B, H, H), and of the columns, (B, W, W); one tensor for a square view.

        Blur is linear, so `Augmenter` multiplies these into the matrices of the resize.
        """
        u = draws[Stream.BLUR]
        (height, width), taps = size, color.blur_kernel_size(min(size))
        sigma, chosen = 0.1 + 1.9 * u[:, 1], u[:, 0] < self.blur
        rows = color.blur_matrix(sigma, chosen, height, taps)
        return rows, rows if width == height else color.blur_matrix(sigma, chosen, width, taps)
