"""Views of images, batched on the training device; everything random is a function of the counters."""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_pl.data.augment import color
from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.data.augment.crop_resize import CROP_NUMBERS, apply_axes, axis_weights, clean_resize, crop_boxes
from hjepa_pl.data.augment.draws import Draws
from hjepa_pl.data.augment.rand_augment import rand_augment, three_augment
from hjepa_pl.data.augment.random_erasing import erase
from hjepa_pl.functional.constants import constant
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.types import Counters
from hjepa_pl.utils.sizes import ImgSize, sides

_ORDERS = tuple(permutations(range(4)))
_PLACE = {Stream.CROP: CROP_NUMBERS, Stream.FLIP: 1}
"""Streams, and how many numbers of each, that say where a view lies."""


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float], *, in_place: bool = False) -> Tensor:
    """Subtract the mean and divide by the deviation of each channel, (B, C, H, W) float32 in [0, 1]."""
    middle, width = (constant(tuple(values), images.device)[:, None, None] for values in (mean, std))
    return (images.sub_(middle) if in_place else images - middle).div_(width)


class Crop(NamedTuple):
    """Where a view lies in each image."""

    box: Tensor
    """(B, 4) float32 whole numbers: top, left, height, width in pixels."""
    flip: Tensor
    """(B,) bool: read from right to left."""

    def shares(self, height: Tensor | int, width: Tensor | int) -> Tensor:
        """Return (B, 4) float32: top, left, bottom, right as shares of the sides, left and right swapped by a flip."""
        top, left, high, wide = self.box.unbind(1)
        right = left + wide
        near, far = torch.where(self.flip, right, left), torch.where(self.flip, left, right)
        return torch.stack([top / height, near / width, (top + high) / height, far / width], 1)


class Augmenter:
    """Makes the views.

    Colours are changed on the native image before it is cropped where that has fewer pixels than the view, and on the
    view otherwise. (So the mean in the contrast change is the image's in the first case, the crop's in the second.)
    Normalisation and blur are linear: the first is done where there are fewer pixels, the second is part of the resize.
    RandAugment and 3-Augment act on the view, whatever its size, and so does all that follows them.

    Several views are made in one go as rows of one batch, view after view: every parameter is a number for each row.

    Attributes:
        colourless: Whether all images are known to be grey, although they may have three channels.
    """

    def __init__(
        self, config: AugmentationConfig, img_size: ImgSize, mean: Sequence[float], std: Sequence[float], seed: int
    ) -> None:
        self.config = config
        self.img_size = sides(img_size)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.seed = seed
        self.colourless = False

    def like(self, config: AugmentationConfig, img_size: ImgSize | None = None) -> "Augmenter":
        """Return one of other settings, and of another size if that is given."""
        return Augmenter(config, self.img_size if img_size is None else img_size, self.mean, self.std, self.seed)

    def _draws(self, epoch: int, position: Tensor, views: Sequence[int], counts: dict[Stream, int]) -> Draws:
        return Draws(hash_int(self.seed, epoch, Stream.VIEW), position, views, counts)

    def _looks(self) -> dict[Stream, int]:
        """Return the streams, and how many numbers of each, that what is done to a view's pixels asks for."""
        c = self.config
        asked = {
            Stream.AFFINE: (c.rotate or c.translate, 3),
            Stream.RAND_AUGMENT: (c.rand_augment, 2 * c.rand_augment),
            Stream.THREE_AUGMENT: (c.three_augment, 2),
            Stream.JITTER: (c.jitter_prob, 5),
            Stream.GRAY: (c.gray, 1),
            Stream.SOLARIZE: (c.solarize, 1),
            Stream.BLUR: (c.blur, 2),
            Stream.ERASE: (c.erase_scale, 1),
            Stream.ERASE_BOX: (c.erase_scale, CROP_NUMBERS),
        }
        return {stream: count for stream, (on, count) in asked.items() if on}

    def boxes(self, height: Tensor | int, width: Tensor | int, epoch: int, position: Tensor, view: int) -> Crop:
        """Draw the crops and flips of one view.

        The aspect of a box is drawn around the view's own. (torchvision's `RandomResizedCrop` draws it around a square
        whatever the view's size, so that a wide view would show everything stretched, which no clean image does.)
        """
        return self._crop(height, width, self._draws(epoch, position, (view,), _PLACE))

    def _crop(self, height: Tensor | int, width: Tensor | int, draws: Draws) -> Crop:
        c, aspect = self.config, self.img_size[1] / self.img_size[0]
        ratio = (c.crop_ratio[0] * aspect, c.crop_ratio[1] * aspect)
        box = crop_boxes(draws[Stream.CROP], height, width, c.crop_scale, ratio)
        return Crop(box, draws[Stream.FLIP][:, 0] < c.flip)

    def view(self, images: Tensor, counters: Counters, view: int) -> Tensor:
        """Make one view of whole images, (B, C, *img_size); see `views`."""
        return self.views(images, counters, (view,))[0]

    def views(self, images: Tensor, counters: Counters, views: Sequence[int]) -> tuple[Tensor, Crop]:
        """Make V views of whole images.

        Args:
            images: (B, C, H, W) float32 in [0, 1].
            counters: With the positions of these images.
            views: Their numbers.

        Returns:
            (V * B, C, *img_size) float32, normalised, view after view, and where each lies.
        """
        height, width = images.shape[2:]
        draws = self._draws(counters.epoch, counters.position, views, _PLACE | self._looks())
        crop = self._crop(height, width, draws)
        images = images.repeat(len(views), 1, 1, 1) if len(views) > 1 else images
        return self._cut(images, crop, draws, counters.step), crop

    def _cut(self, images: Tensor, crop: Crop, draws: Draws, step: int) -> Tensor:
        """Make a view of each whole image, (rows, C, H, W)."""
        (box, flip), (height, width) = crop, images.shape[2:]
        if self.config.whole:
            clean = clean_resize(images, self.img_size)
            return self._finish(torch.where(flip[:, None, None, None], clean.flip(-1), clean), draws, step)
        rows = axis_weights(box[:, 0], box[:, 2], self.img_size[0], height)
        columns = axis_weights(box[:, 1], box[:, 3], self.img_size[1], width, flip)
        on_view = self.config.rand_augment or self.config.three_augment
        if on_view or height * width > self.img_size[0] * self.img_size[1]:
            return self._finish(apply_axes(images, rows, columns), draws, step)
        images = normalise(self._recolour(images, draws, step), self.mean, self.std)
        blur = self._blur(draws)
        if blur is not None:
            rows, columns = blur[0] @ rows, blur[1] @ columns
        return self._erase(apply_axes(images, rows, columns), draws)

    def finish(self, images: Tensor, counters: Counters, views: Sequence[int]) -> Tensor:
        """Make views of what is already cropped and flipped, and given up: (V * B, C, *img_size), as `views`."""
        draws = self._draws(counters.epoch, counters.position, views, self._looks())
        return self._finish(images, draws, counters.step)

    def _finish(self, images: Tensor, draws: Draws, step: int) -> Tensor:
        images = normalise(self._recolour(images, draws, step), self.mean, self.std, in_place=True)
        blur = self._blur(draws)
        return self._erase(images if blur is None else apply_axes(images, *blur), draws)

    def _erase(self, images: Tensor, draws: Draws) -> Tensor:
        c = self.config
        if c.erase_scale is None or c.erase_ratio is None:
            return images
        u = (draws[Stream.ERASE], draws[Stream.ERASE_BOX])
        return erase(images, u, c.erase, c.erase_scale, c.erase_ratio)

    def _blur(self, draws: Draws) -> tuple[Tensor, Tensor] | None:
        """Return the matrices of the rows and of the columns, one and the same for a square view."""
        if not self.config.blur:
            return None
        u = draws[Stream.BLUR]
        (height, width), taps = self.img_size, color.blur_kernel_size(min(self.img_size))
        sigma, chosen = 0.1 + 1.9 * u[:, 1], u[:, 0] < self.config.blur
        rows = color.blur_matrix(sigma, chosen, height, taps)
        return rows, rows if width == height else color.blur_matrix(sigma, chosen, width, taps)

    def _recolour(self, images: Tensor, draws: Draws, step: int) -> Tensor:
        """Turn, shift and change colours."""
        c = self.config
        if c.rotate or c.translate:
            u = draws[Stream.AFFINE] * 2 - 1
            images = turn_and_shift(images, u[:, 0] * c.rotate, u[:, 1:] * c.translate)
        has_colour = images.shape[1] > 1 and not self.colourless
        if c.rand_magnitude is not None:
            images = rand_augment(images, draws[Stream.RAND_AUGMENT], c.rand_magnitude, has_colour)
        if c.three_augment:
            images = three_augment(images, draws[Stream.THREE_AUGMENT], has_colour)
        if c.jitter_prob:
            images = self._jitter(images, draws[Stream.JITTER], step)
        if c.gray:
            chosen = draws[Stream.GRAY] < c.gray
            images = torch.where(chosen[:, :, None, None], color.to_gray(images), images)
        if c.solarize:
            images = color.solarize(images, draws[Stream.SOLARIZE][:, 0] < c.solarize)
        return images

    def _jitter(self, images: Tensor, u: Tensor, step: int) -> Tensor:
        """Change brightness, contrast, saturation and hue, in an order that is drawn for the step."""
        c = self.config
        chosen = u[:, 4] < c.jitter_prob
        amount = (u[:, :4] * 2 - 1) * chosen[:, None]
        order = _ORDERS[hash_int(self.seed, Stream.JITTER_ORDER, step) % len(_ORDERS)]
        for which in order:
            strength = c.jitter[which]
            if not strength:
                continue
            by = amount[:, which] * strength
            if which == 3:
                # The way through hue and back is not exact, so images that are not chosen are left alone.
                images = torch.where(chosen[:, None, None, None], color.adjust_hue(images, by), images)
            else:
                change = (color.adjust_brightness, color.adjust_contrast, color.adjust_saturation)[which]
                images = change(images, 1 + by)
        return images


def turn_and_shift(images: Tensor, degrees: Tensor, shift: Tensor) -> Tensor:
    """Rotate each image about its centre, then shift it; what comes in from outside is black.

    Args:
        images: (B, C, H, W) float32.
        degrees: (B,) counter-clockwise.
        shift: (B, 2) to the right and down, as a share of the side.

    Returns:
        (B, C, H, W) float32.
    """
    height, width = images.shape[2:]
    angle = degrees * (torch.pi / 180)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # The grid asks where each pixel comes from; its coordinates run from -1 to 1 along either side.
    right, down = 2 * shift[:, 0], 2 * shift[:, 1]
    b, d = -sin * height / width, sin * width / height
    theta = torch.stack([cos, b, -cos * right - b * down, d, cos, -d * right - cos * down], 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
