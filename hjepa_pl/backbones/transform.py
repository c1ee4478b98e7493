"""The clean transform: how probes see an image, for images from anywhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hjepa_pl.data.augment.augmenter import normalize
from hjepa_pl.data.augment.color import adapt_channels
from hjepa_pl.data.augment.crop_resize import clean_resize
from hjepa_pl.data.sources.decode import ImageFile, pillow_pixels
from hjepa_pl.types import ConfigError
from hjepa_pl.utils.sizes import ImgSize, sides


class CleanTransform:
    """Resizes an image to cover `img_size`, crops the center, and normalizes it: the transform of the probes.

    A path is decoded as image files are in training, an image of Pillow likewise (turned upright, transparent parts on
    white); both are resized in 8 bits. A tensor is taken as a set in memory (`digits`, `cifar10`) and resized in 32.
    Gray images are repeated for an encoder of color, color is converted to luma for one of gray.

    Args:
        img_size: Height and width of the result in pixels; one number is a square.
        channels: 1 or 3.
        mean: Mean of each channel, of values in [0, 1].
        std: Standard deviation of each channel.

    Example:
        >>> transform = CleanTransform(32, 3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        >>> transform(torch.zeros(1, 40, 60, dtype=torch.uint8)).shape
        torch.Size([3, 32, 32])
    """

    def __init__(self, img_size: ImgSize, channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        if channels not in (1, 3):
            raise ConfigError(
                f"the encoder takes {channels} channels, and the clean transform is for 1 or 3; prepare its images as "
                "in training."
            )
        self.img_size, self.channels = sides(img_size), channels
        self.mean, self.std = tuple(mean), tuple(std)

    def __call__(self, image: Any) -> Tensor:
        """Transform an image.

        Args:
            image: An image of Pillow, the path of an image file, or a uint8 tensor (C, H, W) or (B, C, H, W) of 1 or 3
                channels.

        Returns:
            float32 (channels, height, width), or (B, channels, height, width) of a batch, on the tensor's device.

        Raises:
            ConfigError: If it is none of these, or the file cannot be decoded.
        """
        if isinstance(image, Tensor):
            self._check(image)
            batch = self._finish(image if image.ndim == 4 else image[None])
            return batch if image.ndim == 4 else batch[0]
        return self._finish(clean_resize(self._decode(image)[None], self.img_size))[0]

    def _decode(self, image: Any) -> Tensor:
        """Return the pixels of a path or of an image of Pillow, (C, H, W) uint8."""
        try:
            if isinstance(image, Image.Image):
                return pillow_pixels(image, self.channels)
            if isinstance(image, str | Path):
                return ImageFile(Path(image).read_bytes()).pixels(self.channels)
        except OSError as error:
            name = f"the image {image}" if isinstance(image, str | Path) else "the image"
            raise ConfigError(f"{name} cannot be read ({error.strerror or error}).") from None
        raise ConfigError(
            f"an image of {type(image).__name__} cannot be transformed: pass an image of Pillow, the path of a file, "
            "or a uint8 tensor (C, H, W)."
        )

    def _check(self, image: Tensor) -> None:
        if image.dtype != torch.uint8 or image.ndim not in (3, 4) or image.shape[-3] not in (1, 3):
            raise ConfigError(
                f"a tensor of {image.dtype} of shape {tuple(image.shape)} cannot be transformed: pass uint8 of shape "
                "(C, H, W) or (B, C, H, W) with 1 or 3 channels."
            )

    def _finish(self, images: Tensor) -> Tensor:
        """Do what is done on the device: `clean_batch` of the data module."""
        images = adapt_channels(images, self.channels).float().div_(255)
        return normalize(clean_resize(images, self.img_size), self.mean, self.std)

    def __repr__(self) -> str:
        return f"CleanTransform(img_size={self.img_size}, channels={self.channels}, mean={self.mean}, std={self.std})"
