"""Images of a dataset as data URIs."""

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from hjepa_pl.data.loading.eval_loader import CleanRows, clean_batch, clean_loader
from hjepa_pl.data.loading.image_spec import ImageSpec
from hjepa_pl.data.sources.bad_files import BadFiles
from hjepa_pl.tools.evaluate.extract import Split
from hjepa_pl.tools.evaluate.html.elements.markup import Markup, tag

_SIDE = 112
"""Largest side of a picture in pixels; larger images are reduced."""


def read_images(split: Split, positions: Tensor, spec: ImageSpec, bad: BadFiles) -> Tensor:
    """Return normalized images (P, C, H, W) of a split, as a network takes them.

    Args:
        split: Of a dataset.
        positions: (P,) int64: which of its images.
        spec: Size, channels and normalization.
        bad: Takes the files that cannot be decoded.
    """
    rows = CleanRows(split.images, split.rows[positions], spec.size, spec.channels, split.name)
    everything = range(len(positions))
    loader = clean_loader(rows, everything, batch_size=len(positions), num_workers=0, pin_memory=False)
    return clean_batch(next(iter(loader)), spec, bad).image


def shown(images: Tensor, spec: ImageSpec) -> Tensor:
    """Return normalized images (P, C, H, W) as bytes, (P, H, W, C) uint8."""
    mean, std = (torch.tensor(s)[:, None, None] for s in (spec.mean, spec.std))
    return ((images * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def image_tag(pixels: Tensor, alt: str) -> Markup:
    """Return the element of an image: PNG where it is small, which keeps its pixels sharp, else JPEG.

    Args:
        pixels: (H, W, C) uint8, C being 1 or 3.
        alt: What it shows.
    """
    height, width, channels = pixels.shape
    array = pixels.numpy()
    image = Image.fromarray(array[:, :, 0] if channels == 1 else array)
    buffer, small = io.BytesIO(), max(height, width) <= 48
    if small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=82)
    source = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    ratio = min(max(width / height, 1 / 3), 3)
    return tag(
        "img", src=source, alt=alt, class_="picture pixels" if small else "picture", style=f"aspect-ratio:{ratio:.3f}"
    )


def spread(labels: Tensor, count: int) -> Tensor:
    """Return positions of at most `count` images, of as many classes as there are, in the order of the classes.

    Args:
        labels: (N,) int64.
        count: How many.

    Example:
        >>> spread(torch.tensor([1, 0, 0, 1, 2]), 3).tolist()
        [1, 0, 4]
    """
    present = labels.unique()
    chosen = present[torch.linspace(0, len(present) - 1, min(count, len(present))).round().long()]
    lists = [(labels == c).nonzero().flatten().tolist() for c in chosen]
    picked: list[tuple[int, int]] = []
    rank = 0
    while len(picked) < min(count, sum(map(len, lists))):
        picked += [(c, found[rank]) for c, found in enumerate(lists) if rank < len(found)]
        rank += 1
    return torch.tensor([position for _, position in sorted(picked[:count])])
