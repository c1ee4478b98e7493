"""Decoding of image files."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps
from torch import Tensor

SHRINKS = (8, 4, 2)
"""Factors by which a JPEG's height and width can be reduced while it is decoded."""
_ORIENTATION = 0x0112
_UPRIGHT, _SIDEWAYS = 1, (5, 6, 7, 8)  # values of the EXIF tag; sideways ones swap height and width
_STUBS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that Pillow names but does not decode by itself


@cache
def extensions() -> frozenset[str]:
    """Return the file extensions (lower case, with the dot) that Pillow decodes."""
    known = Image.registered_extensions()
    return frozenset(ext for ext, kind in known.items() if kind in Image.OPEN and kind not in _STUBS)


class _Header(NamedTuple):
    """Header of a JPEG that libjpeg decodes correctly: 8 bits, of plausible size, without rotation."""

    components: int
    height: int
    width: int


class ImageFile:
    """An image file, not decoded yet.

    Args:
        content: The bytes of the file.

    Attributes:
        height: Of the image in pixels, from its header. An image that only its data say is rotated has it as width.
        width: Likewise.
        max_shrink: Largest factor for `pixels`: 1, or one of `SHRINKS`.

    Raises:
        OSError: If the bytes are no image.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._plain = self._image = None
        with _only_os_errors():
            if not content:
                raise OSError("is empty")
            self._plain = _plain_jpeg(content)
            if self._plain is not None:
                self.height, self.width, self.max_shrink = self._plain.height, self._plain.width, max(SHRINKS)
                return
            self._image = image = Image.open(io.BytesIO(content))
            (self.width, self.height), self.max_shrink = image.size, 1
            if image.format in ("JPEG", "MPO"):  # other formats may tell their rotation only when decoded
                orientation = image.getexif().get(_ORIENTATION, _UPRIGHT)
                if orientation in _SIDEWAYS:
                    self.width, self.height = self.height, self.width
                # Rounding up pads the end of a row or column, which in a rotated image is its beginning.
                upright = orientation == _UPRIGHT
                exact = (s for s in SHRINKS if upright or (image.width % s == 0 and image.height % s == 0))
                self.max_shrink = next(exact, 1)

    def pixels(self, channels: int | None, shrink: int = 1) -> Tensor:
        """Decode the image. It can be called once, since the bytes are freed.

        Args:
            channels: 1 or 3; None keeps gray images at one channel.
            shrink: 1, or one of `SHRINKS` up to `max_shrink`. Height and width are divided by it and rounded up; a
                pixel is about the mean of a square. libjpeg skips what is not needed: a 12-megapixel photograph
                decodes in a quarter to half of the time.

        Returns:
            (C, H, W) uint8, rotated by the EXIF tag, transparent parts on white, 16 bits scaled to 8.

        Raises:
            OSError: If it cannot be decoded or is truncated. JPEG has no checksums, so changed bytes within its data,
                and data missing before its end marker, go unnoticed.
        """
        content, image, self._content, self._image = self._content, self._image, b"", None
        with _only_os_errors():
            array = None if self._plain is None else _fast(content, self._plain, channels, shrink)
            if array is None:
                array = _slow(image or Image.open(io.BytesIO(content)), channels, shrink)
            expected = tuple(-(-side // shrink) for side in (self.height, self.width))
            if shrink > 1 and array.shape[:2] != expected:
                raise OSError("its size is not the one in its header")
        # A view: the channels of a pixel stay adjacent in memory.
        return torch.from_numpy(array.transpose(2, 0, 1))


def pillow_pixels(image: Image.Image, channels: int | None) -> Tensor:
    """Return the pixels of an image that Pillow has opened, as `ImageFile.pixels` does of a file.

    Args:
        image: The image; it stays as it is.
        channels: 1 or 3; None keeps gray images at one channel.

    Raises:
        OSError: If it cannot be decoded.
    """
    with _only_os_errors():
        array = _to_eight_bits(ImageOps.exif_transpose(image), channels)
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)


@contextmanager
def _only_os_errors() -> Iterator[None]:
    """Raise every error of a decoder as OSError: broken bytes raise anything from SyntaxError to RuntimeError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(str(error)) from error


def _plain_jpeg(content: bytes) -> _Header | None:
    """Return the header of a JPEG that `_fast` decodes, None of any other file."""
    if content[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        # Most JPEGs with EXIF are upright: only the tag tells. (XMP may hold it too.)
        if marker == 0xE1 and (content[at + 4 : at + 8] == b"Exif" or b"Orientation" in content[at : at + 2 + length]):
            with Image.open(io.BytesIO(content)) as image:
                if image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
                    return None
        if marker in (0xC0, 0xC1, 0xC2):
            height, width = (int.from_bytes(content[at + i : at + i + 2], "big") for i in (5, 7))
            # Above its limit Pillow takes over, and rejects twice as many pixels. A height of 0 follows after the data.
            plausible = 0 < height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
            usual = content[at + 4] == 8 and content[at + 9] in (1, 3)
            return _Header(content[at + 9], height, width) if usual and plausible else None
        at += 2 + length
    return None


def _fast(content: bytes, header: _Header, channels: int | None, shrink: int) -> np.ndarray | None:
    """Decode by libjpeg-turbo, which is faster than Pillow: (H, W, C), or None if Pillow has to decode it.

    Color images are bitwise Pillow's; a color image decoded to gray differs by at most one level.

    Raises:
        OSError: If it is truncated.
    """
    colorspace = "GRAY" if channels == 1 or (channels is None and header.components == 1) else "RGB"
    minimum = {"min_height": -(-header.height // shrink), "min_width": -(-header.width // shrink)}
    try:
        return simplejpeg.decode_jpeg(content, colorspace, min_factor=shrink, **minimum)
    except ValueError as error:
        if "Premature end" in str(error):
            raise OSError("image file is truncated") from None
        return None  # a warning that Pillow ignores, or an error that it explains better


def _slow(file: Any, channels: int | None, shrink: int) -> np.ndarray:
    """Decode by Pillow: (H, W, C) uint8."""
    with file as image:
        if shrink > 1:
            width, height = image.size  # of the file, before rotation
            image.draft("L" if channels == 1 else image.mode, (width // shrink, height // shrink))
        ImageOps.exif_transpose(image, in_place=True)  # copies nothing if there is no rotation
        array = _to_eight_bits(image, channels)
    return array[..., None] if array.ndim == 2 else array


def _to_eight_bits(image: Any, channels: int | None) -> np.ndarray:
    """Return an (H, W) or (H, W, 3) uint8 array of a Pillow image of any mode."""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_scale_deep(np.asarray(image)))
    elif image.mode in ("P", "PA", "LA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        gray = image.mode in ("LA", "La")
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        image = image.convert("L" if gray else "RGB")
    gray = channels == 1 or (channels is None and image.mode in ("L", "1"))
    mode = "L" if gray else "RGB"
    return np.array(image if image.mode == mode else image.convert(mode))


def _scale_deep(values: np.ndarray) -> np.ndarray:
    """Scale 16-bit, 32-bit or float gray values to 0..255."""
    if values.dtype.kind == "f":
        top = 1.0 if values.max(initial=0) <= 1.0 else 255.0
        return np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8)
    # A 16-bit file may be opened as 32-bit integers; 257 maps 65535 to 255.
    divisor = 257.0 if values.dtype.itemsize == 2 or values.max(initial=0) > 255 else 1.0
    return np.clip(values / divisor + 0.5, 0, 255).astype(np.uint8)
