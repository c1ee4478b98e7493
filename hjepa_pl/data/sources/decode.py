"""Image files, as bytes and as pixels."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps
from torch import Tensor

SHRINKS = (8, 4, 2)
"""By what a JPEG can be made smaller while it is decoded."""
_ORIENTATION = 0x0112
_UPRIGHT, _LYING = 1, (5, 6, 7, 8)  # how the camera was held


class _Header(NamedTuple):
    """Of a JPEG that libjpeg decodes as it is meant to be seen: 8 bits, of sane size, not to be turned."""

    components: int
    height: int
    width: int


class ImageFile:
    """The bytes of an image file, not decoded yet.

    Args:
        content: The bytes of the file.

    Attributes:
        height: Of the image in pixels, as far as its header tells; a turned one may have it as its width.
        width: Likewise.
        most_shrink: By how much smaller it can be decoded: 1, or one of `SHRINKS`.

    Raises:
        OSError: The bytes are no image.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._plain = self._image = None
        with _only_os_errors():
            if not content:
                raise OSError("it is empty")
            self._plain = _plain_jpeg(content)
            if self._plain is not None:
                self.height, self.width, self.most_shrink = self._plain.height, self._plain.width, max(SHRINKS)
                return
            self._image = image = Image.open(io.BytesIO(content))
            (self.width, self.height), self.most_shrink = image.size, 1
            if image.format in ("JPEG", "MPO"):  # of others, not all tell how they are turned before they are decoded
                held = image.getexif().get(_ORIENTATION, _UPRIGHT)
                if held in _LYING:
                    self.width, self.height = self.height, self.width
                # What rounding adds to a side lies at its end in the file: where the image is turned, at its beginning.
                exact = (s for s in SHRINKS if held == _UPRIGHT or (image.width % s == 0 and image.height % s == 0))
                self.most_shrink = next(exact, 1)

    def pixels(self, channels: int | None, shrink: int = 1) -> Tensor:
        """Decode it, once: the bytes are given up.

        Args:
            channels: 1 or 3; None keeps grey images at one channel.
            shrink: 1, or one of `SHRINKS` up to `most_shrink`: the sides are made smaller by it, and rounded up; a
                pixel is about the mean of a square. libjpeg leaves out what is lost: a photograph of 12 megapixels
                takes half to three quarters of the time.

        Returns:
            (C, H, W) uint8: turned as its EXIF tag says, transparent parts on white, 16 bits scaled to 8.

        Raises:
            OSError: It cannot be decoded, be it only that its end is missing. (What no decoder tells: changed bytes
                amid the data of a JPEG, which has no sums, and data that lack before its end marker.)
        """
        content, image, self._content, self._image = self._content, self._image, b"", None
        with _only_os_errors():
            array = None if self._plain is None else _fast(content, self._plain, channels, shrink)
            if array is None:
                array = _slow(image or Image.open(io.BytesIO(content)), channels, shrink)
            expected = tuple(-(-side // shrink) for side in (self.height, self.width))
            if shrink > 1 and array.shape[:2] != expected:
                raise OSError("its size is not that of its header")
        # Colours stay beside each other in memory.
        return torch.from_numpy(array.transpose(2, 0, 1))


@contextmanager
def _only_os_errors() -> Iterator[None]:
    """Turn what decoders raise on broken bytes, anything from SyntaxError to RuntimeError, into one kind."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(str(error)) from error


def _plain_jpeg(content: bytes) -> _Header | None:
    """Return the header of a JPEG of one or three components; None for all else."""
    if content[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        # Most cameras write EXIF and hold the camera upright: only the tag itself tells. (XMP may have it too.)
        if marker == 0xE1 and (content[at + 4 : at + 8] == b"Exif" or b"Orientation" in content[at : at + 2 + length]):
            with Image.open(io.BytesIO(content)) as image:
                if image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
                    return None
        if marker in (0xC0, 0xC1, 0xC2):
            height, width = (int.from_bytes(content[at + i : at + i + 2], "big") for i in (5, 7))
            # A header may promise gigabytes: above its limit Pillow takes over, and refuses them above twice that. One
            # may name no height, and bring it after the data.
            small = 0 < height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
            usual = content[at + 4] == 8 and content[at + 9] in (1, 3)
            return _Header(content[at + 9], height, width) if usual and small else None
        at += 2 + length
    return None


def _fast(content: bytes, header: _Header, channels: int | None, shrink: int) -> np.ndarray | None:
    """Decode by libjpeg-turbo, faster than Pillow: (H, W, C), or None for what Pillow shall judge.

    Colours are Pillow's to the bit; grey of a coloured file is to one level.

    Raises:
        OSError: The end is missing.
    """
    colours = "GRAY" if channels == 1 or (channels is None and header.components == 1) else "RGB"
    least = {"min_height": -(-header.height // shrink), "min_width": -(-header.width // shrink)}
    try:
        return simplejpeg.decode_jpeg(content, colours, min_factor=shrink, **least)
    except ValueError as error:
        if "Premature end" in str(error):
            raise OSError("image file is truncated") from None
        return None  # a warning that others pass over, or an error that they explain better


def _slow(file: Any, channels: int | None, shrink: int) -> np.ndarray:
    """Decode by Pillow: (H, W, C)."""
    with file as image:
        if shrink > 1:
            wide, high = image.size  # of the file, before it is turned
            image.draft("L" if channels == 1 else image.mode, (wide // shrink, high // shrink))
        ImageOps.exif_transpose(image, in_place=True)  # which copies nothing where nothing is turned
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
    """Scale 16-bit, 32-bit or float grey values to 0..255."""
    if values.dtype.kind == "f":
        top = 1.0 if values.max(initial=0) <= 1.0 else 255.0
        return np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8)
    # A 16-bit file may be opened as 32-bit integers; 257 maps 65535 to 255.
    divisor = 257.0 if values.dtype.itemsize == 2 or values.max(initial=0) > 255 else 1.0
    return np.clip(values / divisor + 0.5, 0, 255).astype(np.uint8)
