"""Where images live: in memory as one uint8 tensor, or in files that are decoded when they are drawn."""

import io
import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from hjepa_pl.functional.constants import constant
from hjepa_pl.types import ConfigError

# Nothing else decodes JPEG as fast; torchvision 0.29 announces that the function will move, and Pillow takes over then.
warnings.filterwarnings("ignore", message=".*decoding and encoding capabilities of TorchVision are deprecated.*")
try:
    from torchvision.io import ImageReadMode, decode_jpeg

    if not hasattr(torch.ops.image, "decode_jpeg"):  # torchvision was built without libjpeg
        decode_jpeg = None
except ImportError:
    decode_jpeg = None

LUMA = (0.2989, 0.587, 0.114)
_ORIENTATION = 0x0112


class ArrayImages:
    """Images of one size, all in memory.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, -1 where there is none.
        classes: Names of the classes, in the order of the labels.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        self.images = images
        self.labels = labels
        self.classes = list(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "ArrayImages":
        """Return the images at `index` as a set of their own."""
        return ArrayImages(self.images[index], self.labels[index], self.classes)


class FileImages:
    """Images in files, each decoded when it is asked for.

    Attributes:
        labels: (N,) int64, -1 where there is none.
        classes: Names of the classes, in the order of the labels.
    """

    def __init__(self, paths: Sequence[str] | np.ndarray, labels: Tensor, classes: Sequence[str]) -> None:
        # One array of bytes: a list of a million strings would be copied page by page into every worker by its
        # reference counts.
        self._paths = paths if isinstance(paths, np.ndarray) else np.array([os.fsencode(p) for p in paths])
        self.labels = labels
        self.classes = list(classes)

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Return the path of one image."""
        return os.fsdecode(bytes(self._paths[index]))

    def read(self, index: int, channels: int | None) -> Tensor:
        """Decode one image to (C, H, W) uint8; `OSError` if it is broken."""
        return decode(self.path(index), channels)

    def subset(self, index: Tensor) -> "FileImages":
        """Return the images at `index` as a set of their own."""
        return FileImages(self._paths[index.numpy()], self.labels[index], self.classes)


Images = ArrayImages | FileImages


def decode(path: str, channels: int | None) -> Tensor:
    """Read an image file as it is meant to be seen.

    Args:
        path: The file.
        channels: 1 or 3; None keeps grey images at one channel.

    Returns:
        (C, H, W) uint8: turned as its EXIF tag says, transparent parts on white, 16 bits scaled to 8.

    Raises:
        OSError: The file cannot be decoded, be it only that its end is missing. (What no decoder tells: changed bytes
            amid the data of a JPEG, which has no sums, and data that lack before its end marker.)
    """
    with open(path, "rb") as file:
        return decode_bytes(file.read(), channels)


def decode_bytes(content: bytes, channels: int | None) -> Tensor:
    """Read the bytes of an image file, as `decode` does."""
    try:
        if not content:
            raise OSError("it is empty")
        components = _plain_jpeg(content) if decode_jpeg is not None else None
        if components in (1, 3):
            gray = channels == 1 or (channels is None and components == 1)
            # Twice as fast as Pillow, and the same numbers.
            buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return decode_jpeg(buffer, ImageReadMode.GRAY if gray else ImageReadMode.RGB)
        with Image.open(io.BytesIO(content)) as image:
            array = _to_eight_bits(ImageOps.exif_transpose(image), channels)
    except OSError:
        raise
    except Exception as error:
        # Decoders raise anything from SyntaxError to RuntimeError on broken bytes.
        raise OSError(str(error)) from error
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def _plain_jpeg(content: bytes) -> int | None:
    """Return the number of colour components of an 8-bit JPEG of sane size, not to be turned; None for all else."""
    if content[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xE1 and content[at + 4 : at + 8] == b"Exif":
            # Most cameras write EXIF and hold the camera upright: only the tag itself tells.
            with Image.open(io.BytesIO(content)) as image:
                if image.getexif().get(_ORIENTATION, 1) != 1:
                    return None
        if marker in (0xC0, 0xC1, 0xC2):
            height, width = (int.from_bytes(content[at + i : at + i + 2], "big") for i in (5, 7))
            # A header may promise gigabytes: above its limit Pillow takes over, and refuses them.
            small = height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
            return content[at + 9] if content[at + 4] == 8 and small else None
        at += 2 + length
    return None


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
    return np.array(image.convert("L" if gray else "RGB"))


def _scale_deep(values: np.ndarray) -> np.ndarray:
    """Scale 16-bit, 32-bit or float grey values to 0..255."""
    if values.dtype.kind == "f":
        top = 1.0 if values.max(initial=0) <= 1.0 else 255.0
        return np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8)
    # A 16-bit file may be opened as 32-bit integers; 257 maps 65535 to 255.
    divisor = 257.0 if values.dtype.itemsize == 2 or values.max(initial=0) > 255 else 1.0
    return np.clip(values / divisor + 0.5, 0, 255).astype(np.uint8)


def adapt_channels(images: Tensor, channels: int) -> Tensor:
    """Return (B, C, H, W) images with `channels` channels: grey is repeated, colour becomes luma."""
    have = images.shape[1]
    if have == channels:
        return images
    if have == 1 and channels == 3:
        return images.expand(-1, 3, -1, -1)
    if have == 3 and channels == 1:
        luma = constant(LUMA, images.device)
        gray = torch.einsum("bchw,c->bhw", images.float(), luma)[:, None]
        return gray if images.is_floating_point() else gray.add_(0.5).to(images.dtype)
    raise ConfigError(f"`in_chans={channels}` does not fit images of {have} channels: use 1 or 3.")


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Choose `count` places so that every class keeps its share (to one image), by the seed.

    Args:
        labels: (N,) int64; -1 counts as a class of its own.
        count: How many to choose; all if there are fewer.
        seed: Which ones.

    Returns:
        (min(N, count),) int64, ascending.
    """
    total = len(labels)
    if count >= total:
        return torch.arange(total)
    generator = np.random.Generator(np.random.PCG64(seed))
    order = torch.from_numpy(generator.permutation(total))
    # The rank of each image within its class, over the class size, is spread evenly; the smallest are chosen.
    by_class = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.unique_consecutive(labels[by_class], return_counts=True)[1]
    rank = torch.cat([(torch.arange(int(s)) + 0.5) / int(s) for s in sizes])
    chosen = by_class[torch.argsort(rank, stable=True)[:count]]
    return chosen.sort().values


def check_split(name: str, split: str, splits: tuple[str, ...]) -> None:
    """Refuse a split that a dataset does not have."""
    if split not in splits:
        raise ConfigError(f"`split={split}` is not one of {name}'s: use {', '.join(splits)}.")
