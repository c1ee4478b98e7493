"""Sheets: rows and columns of small images with titles, as Pillow images."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Tile = NDArray[np.uint8]
"""(H, W, 3) of 8 bits."""
INK, FAINT, PAPER, _FRAME = "#1a1a1a", "#6b6b6b", "#ffffff", "#c8c8c8"
SIDE = 112
"""Longer side of a tile in pixels."""
_GAP, _MARGIN = 10, 20
_STOPS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Colors of `heat`, from dark to light, so that they stay in order when printed in gray."""


class Column(NamedTuple):
    """A column of a sheet."""

    title: str
    """At most a few words; lines are separated by a line feed."""
    tiles: Sequence[Tile]
    """One for each row."""
    scale: tuple[str, str] | None = None
    """Words at the dark and at the light end of a color bar below the column; None draws none."""


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, which every installation has."""
    return ImageFont.load_default(size)


def heat(values: NDArray[np.floating], low: float, high: float) -> Tile:
    """Return values (H, W) in [low, high] as colors from dark to light; NaN is white."""
    known = np.isfinite(values)
    fraction = np.clip((np.where(known, values, low) - low) / max(high - low, 1e-12), 0, 1)
    stops = np.linspace(0, 1, len(_STOPS))
    channels = [np.interp(fraction, stops, [c[i] for c in _STOPS]) for i in range(3)]
    colors = np.stack(channels, axis=-1)
    colors[~known] = 255
    return colors.round().astype(np.uint8)


def fit(tile: Tile, side: int = SIDE) -> Tile:
    """Return an image of another size, its longer side `side` pixels."""
    factor = side / max(tile.shape[:2])
    height, width = (max(1, round(length * factor)) for length in tile.shape[:2])
    if (height, width) == tile.shape[:2]:
        return tile
    how = Image.Resampling.BICUBIC if factor < 20 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(tile).resize((width, height), how))


def sheet(title: str, columns: Sequence[Column], note: str = "", side: int = SIDE) -> Image.Image:
    """Draw columns of tiles next to each other.

    Args:
        title: What the sheet shows.
        columns: All with the same number of tiles of one size.
        note: How to read it; wrapped below the tiles.
        side: Longer side of a tile on the sheet, in pixels.
    """
    height, width = fit(columns[0].tiles[0], side).shape[:2]
    text, small = font(15), font(13)
    pitch = max(width, *(int(_widest(c.title, small)) for c in columns)) + _GAP
    total = 2 * _MARGIN + pitch * len(columns) - _GAP
    total = max(total, 2 * _MARGIN + int(text.getlength(title)) + 1)
    lines = wrap(note, small, total - 2 * _MARGIN)
    heads = max(c.title.count("\n") + 1 for c in columns)
    top = _MARGIN + 30 + 17 * heads
    rows = len(columns[0].tiles)
    bars = 40 if any(c.scale for c in columns) else 0
    end = top + rows * (height + _GAP) + bars
    image = Image.new("RGB", (total, end + 17 * len(lines) + _MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, _MARGIN - 4), title, INK, text)
    for number, column in enumerate(columns):
        left = _MARGIN + number * pitch
        bottom = top - 6 - 17 * (column.title.count("\n") + 1)
        for i, line in enumerate(column.title.split("\n")):
            draw.text((left, bottom + 17 * i), line, INK, small)
        for row, tile in enumerate(column.tiles):
            y = top + row * (height + _GAP)
            image.paste(Image.fromarray(fit(tile, side)), (left, y))
            draw.rectangle((left - 1, y - 1, left + width, y + height), outline=_FRAME)
        if column.scale is not None:
            _bar(image, (left, end - bars + 2), width, column.scale)
    for i, line in enumerate(lines):
        draw.text((_MARGIN, end + 17 * i), line, FAINT, small)
    return image


def _bar(image: Image.Image, at: tuple[int, int], width: int, scale: tuple[str, str]) -> None:
    """Draw a color bar with a word at each end."""
    ramp = np.linspace(0, 1, width)[None].repeat(9, axis=0)
    image.paste(Image.fromarray(heat(ramp, 0, 1)), at)
    draw, small = ImageDraw.Draw(image), font(12)
    draw.text((at[0], at[1] + 11), scale[0], INK, small)
    draw.text((at[0] + width - small.getlength(scale[1]), at[1] + 11), scale[1], INK, small)


def wrap(text: str, face: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Return a text as lines of at most `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and face.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _widest(text: str, face: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> float:
    return max(face.getlength(line) for line in text.split("\n")) + 2
