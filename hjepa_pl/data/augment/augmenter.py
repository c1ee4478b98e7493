"""Views of images, batched on the training device; all randomness is a function of the counters."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hjepa_pl.data.augment.blur import Blur
from hjepa_pl.data.augment.config import AugmentationConfig
from hjepa_pl.data.augment.crop_resize import CROP_NUMBERS, apply_axes, axis_weights, clean_resize, crop_boxes
from hjepa_pl.data.augment.draws import Draws
from hjepa_pl.data.augment.part import StepInfo
from hjepa_pl.functional.constants import constant
from hjepa_pl.functional.counters import Stream, hash_int
from hjepa_pl.types import Counters
from hjepa_pl.utils.sizes import ImgSize, sides

_CROP_NUMBERS: dict[int, int] = {Stream.CROP: CROP_NUMBERS, Stream.FLIP: 1}
"""Random streams of crop and flip, and how many numbers of each a view takes."""


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float], *, in_place: bool = False) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel, (B, C, H, W) float32 in [0, 1]."""
    means, stds = (constant(tuple(values), images.device)[:, None, None] for values in (mean, std))
    return (images.sub_(means) if in_place else images - means).div_(stds)


class Crop(NamedTuple):
    """Crop and flip of a view in each image."""

    box: Tensor
    """(B, 4) float32 whole numbers: top, left, height, width in pixels."""
    flip: Tensor
    """(B,) bool: flipped from left to right."""

    def relative(self, height: Tensor | int, width: Tensor | int) -> Tensor:
        """Return (B, 4) float32 top, left, bottom, right as fractions of the image; a flip swaps left and right."""
        top, left, high, wide = self.box.unbind(1)
        right = left + wide
        near, far = torch.where(self.flip, right, left), torch.where(self.flip, left, right)
        return torch.stack([top / height, near / width, (top + high) / height, far / width], 1)


class Augmenter:
    """Makes the views.

    Where the native image has fewer pixels than the view, colors are changed before it is cropped, otherwise on the
    view. (The mean in the contrast change is that of the image in the first case, of the crop in the second.)
    Normalization and blur are linear: the first is done where there are fewer pixels, the second is part of the resize.
    If a part has to see the view (`Part.before_crop`), all of them do.

    Several views are made at once as rows of one batch, view after view: every parameter is a number for each row.

    Attributes:
        images_are_gray: Whether all images are known to be gray, although they may have three channels.
    """

    def __init__(
        self, config: AugmentationConfig, img_size: ImgSize, mean: Sequence[float], std: Sequence[float], seed: int
    ) -> None:
        self.config = config
        self.img_size = sides(img_size)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.seed = seed
        self.images_are_gray = False
        parts = config.parts
        self._numbers = {stream: count for part in parts for stream, count in part.numbers.items()}
        self._pixel_parts = [part for part in parts if not part.normalized]
        self._blur = next((part for part in parts if isinstance(part, Blur)), None)
        self._normalized_parts = [part for part in parts if part.normalized and part is not self._blur]
        self._before_crop = all(part.before_crop for part in self._pixel_parts)

    def like(self, config: AugmentationConfig, img_size: ImgSize | None = None) -> "Augmenter":
        """Return an augmenter with another config and, unless None, another size."""
        size = self.img_size if img_size is None else img_size
        other = Augmenter(config, size, self.mean, self.std, self.seed)
        other.images_are_gray = self.images_are_gray
        return other

    def _draws(self, epoch: int, position: Tensor, views: Sequence[int], counts: dict[int, int]) -> Draws:
        return Draws(hash_int(self.seed, epoch, Stream.VIEW), position, views, counts)

    def boxes(self, height: Tensor | int, width: Tensor | int, epoch: int, position: Tensor, view: int) -> Crop:
        """Draw the crops and flips of one view.

        The aspect ratio of a box is relative to that of the view. (torchvision's `RandomResizedCrop` draws it relative
        to a square for any output size, which stretches wide views as no clean image is.)
        """
        return self._crop(height, width, self._draws(epoch, position, (view,), _CROP_NUMBERS))

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
            counters: Counters of these images.
            views: Indices of the views.

        Returns:
            (V * B, C, *img_size) float32, normalized, view after view, and their crops.
        """
        height, width = images.shape[2:]
        draws = self._draws(counters.epoch, counters.position, views, _CROP_NUMBERS | self._numbers)
        crop = self._crop(height, width, draws)
        images = images.repeat(len(views), 1, 1, 1) if len(views) > 1 else images
        return self._crop_and_change(images, crop, draws, counters.step), crop

    def _crop_and_change(self, images: Tensor, crop: Crop, draws: Draws, step: int) -> Tensor:
        """Make a view of each whole image, (rows, C, H, W)."""
        (box, flip), (height, width) = crop, images.shape[2:]
        if self.config.whole:
            clean = clean_resize(images, self.img_size)
            return self._change(torch.where(flip[:, None, None, None], clean.flip(-1), clean), draws, step)
        rows = axis_weights(box[:, 0], box[:, 2], self.img_size[0], height)
        columns = axis_weights(box[:, 1], box[:, 3], self.img_size[1], width, flip)
        if not self._before_crop or height * width > self.img_size[0] * self.img_size[1]:
            return self._change(apply_axes(images, rows, columns), draws, step)
        images = normalize(self._change_pixels(images, draws, step), self.mean, self.std)
        if self._blur is not None:
            blur_rows, blur_columns = self._blur.matrices(draws, self.img_size)
            rows, columns = blur_rows @ rows, blur_columns @ columns
        return self._change_normalized(apply_axes(images, rows, columns), draws, step)

    def finish(self, images: Tensor, counters: Counters, views: Sequence[int]) -> Tensor:
        """Make views of images that are cropped and flipped already, and may be overwritten.

        Returns:
            (V * B, C, *img_size), as `views`.
        """
        draws = self._draws(counters.epoch, counters.position, views, self._numbers)
        return self._change(images, draws, counters.step)

    def _change(self, images: Tensor, draws: Draws, step: int) -> Tensor:
        """Apply all parts to crops, which may be overwritten."""
        images = normalize(self._change_pixels(images, draws, step), self.mean, self.std, in_place=True)
        if self._blur is not None:
            images = self._blur(images, draws, self._info(images, step))
        return self._change_normalized(images, draws, step)

    def _change_pixels(self, images: Tensor, draws: Draws, step: int) -> Tensor:
        info = self._info(images, step)
        for part in self._pixel_parts:
            images = part(images, draws, info)
        return images

    def _change_normalized(self, images: Tensor, draws: Draws, step: int) -> Tensor:
        info = self._info(images, step)
        for part in self._normalized_parts:
            images = part(images, draws, info)
        return images

    def _info(self, images: Tensor, step: int) -> StepInfo:
        return StepInfo(self.seed, step, has_color=images.shape[1] > 1 and not self.images_are_gray)
