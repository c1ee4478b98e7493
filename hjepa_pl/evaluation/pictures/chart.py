"""Line charts with a logarithmic axis, as Pillow images."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from hjepa_pl.evaluation.pictures.sheet import FAINT, INK, PAPER, font

_SCALE = 2
"""Drawn this much larger and reduced, for smooth lines."""
_COLORS = ("#0b3c5d", "#c1440e", "#3a7d44", "#8c6bb1", "#b8860b", "#1a9ba8", "#a23b72", "#6b6b6b")
_DASHES = ((), (9, 4), (2, 4), (9, 3, 2, 3))
"""Lengths of strokes and gaps in pixels: lines are told apart without color."""


class Line(NamedTuple):
    """A curve."""

    name: str
    points: Sequence[tuple[float, float]]
    """x and y; those with a y that is not positive and finite are left out."""


def chart(title: str, lines: Sequence[Line], across: str, up: str, size: tuple[int, int] = (760, 430)) -> Image.Image:
    """Draw curves over a linear horizontal and a logarithmic vertical axis.

    Args:
        title: What the chart shows.
        lines: The curves; their names are listed on the right in the order of their last values.
        across: Name of the horizontal axis.
        up: Name of the vertical axis, written above it.
        size: Width and height in pixels.
    """
    kept = [Line(name, [(x, y) for x, y in points if y > 0 and math.isfinite(y)]) for name, points in lines]
    kept = [line for line in kept if line.points]
    image = Image.new("RGB", (size[0] * _SCALE, size[1] * _SCALE), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text(_at(20, 14), title, INK, font(15 * _SCALE))
    draw.text(_at(20, 38), up, FAINT, font(13 * _SCALE))
    if not kept:
        draw.text(_at(20, 70), "no values yet", FAINT, font(13 * _SCALE))
        return image.resize(size, Image.Resampling.LANCZOS)
    legend = int(max(font(13).getlength(line.name) for line in kept)) + 50
    frame = _Frame(kept, left=74, top=64, right=size[0] - legend - 16, bottom=size[1] - 52)
    _axes(draw, frame, across)
    order = sorted(range(len(kept)), key=lambda i: -kept[i].points[-1][1])
    for place, number in enumerate(order):
        color, dash = _COLORS[number % len(_COLORS)], _DASHES[number % len(_DASHES)]
        points = [frame.at(x, y) for x, y in kept[number].points]
        _stroke(draw, points, color, dash)
        y = frame.top + 20 * place + 8
        _stroke(draw, [(frame.right + 12, y), (frame.right + 40, y)], color, dash)
        draw.text(_at(frame.right + 46, y - 9), kept[number].name, INK, font(13 * _SCALE))
    return image.resize(size, Image.Resampling.LANCZOS)


class _Frame:
    """The rectangle of the curves, and where a value is in it."""

    def __init__(self, lines: Sequence[Line], left: int, top: int, right: int, bottom: int) -> None:
        self.left, self.top, self.right, self.bottom = left, top, right, bottom
        xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
        self.first, self.last = min(xs), max(xs)
        self.low, self.high = math.log10(min(ys)), math.log10(max(ys))
        if self.high - self.low < 0.5:  # a flat curve is in the middle, not blown up
            middle = (self.high + self.low) / 2
            self.low, self.high = middle - 0.25, middle + 0.25

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a value, in pixels of the chart."""
        along = (x - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        above = (math.log10(y) - self.low) / (self.high - self.low)
        return self.left + along * (self.right - self.left), self.bottom - above * (self.bottom - self.top)


def _axes(draw: ImageDraw.ImageDraw, frame: _Frame, across: str) -> None:
    """Draw the frame, the ticks and their numbers."""
    face = font(12 * _SCALE)
    box = (*_at(frame.left, frame.top), *_at(frame.right, frame.bottom))
    draw.rectangle(box, outline=FAINT, width=_SCALE)
    for value in _decades(frame.low, frame.high):
        y = frame.at(frame.first, value)[1]
        draw.line([*_at(frame.left, y), *_at(frame.right, y)], fill="#dcdcdc", width=_SCALE)
        label = f"{value:g}" if 1e-4 < value < 1e5 else f"{value:.0e}"
        width = face.getlength(label) / _SCALE
        draw.text(_at(frame.left - 8 - width, y - 8), label, INK, face)
    for value in _whole(frame.first, frame.last):
        x = frame.at(value, 10**frame.low)[0]
        draw.line([*_at(x, frame.bottom), *_at(x, frame.bottom + 5)], fill=FAINT, width=_SCALE)
        label = f"{value:,.0f}"
        draw.text(_at(x - face.getlength(label) / _SCALE / 2, frame.bottom + 8), label, INK, face)
    width = face.getlength(across) / _SCALE
    draw.text(_at((frame.left + frame.right - width) / 2, frame.bottom + 27), across, INK, face)


def _decades(low: float, high: float) -> list[float]:
    """Return the ticks of a logarithmic axis: powers of ten, or 1, 2 and 5 of each if those are few."""
    for digits, every in (((1,), 3), ((1,), 1), ((1, 2, 5), 1), ((1, 1.5, 2, 3, 4, 5, 6, 8), 1)):
        powers = range(math.floor(low), math.ceil(high) + 1, every)
        ticks = [d * 10.0**p for p in powers for d in digits if low - 1e-9 <= math.log10(d) + p <= high + 1e-9]
        if len(ticks) >= 3:
            return ticks
    return ticks


def _whole(first: float, last: float) -> list[float]:
    """Return at most six round numbers from first to last."""
    span = max(last - first, 1)
    step = next(m * 10**p for p in range(12) for m in (1, 2, 5) if span / (m * 10**p) <= 5)
    start = math.ceil(first / step)
    return [number * step for number in range(start, math.floor(last / step) + 1)]


def _stroke(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], color: str, dash: Sequence[int]) -> None:
    """Draw a line through points, or a dot at the only one."""
    if len(points) == 1:
        (x, y), r = points[0], 3
        draw.ellipse((*_at(x - r, y - r), *_at(x + r, y + r)), fill=color)
        return
    if not dash:
        draw.line([v for x, y in points for v in _at(x, y)], fill=color, width=2 * _SCALE, joint="curve")
        return
    done, period = 0.0, sum(dash)
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length = math.hypot(x1 - x0, y1 - y0)
        pieces = max(1, math.ceil(length))
        for i in range(pieces):
            if _inked((done + length * i / pieces) % period, dash):
                a, b = i / pieces, (i + 1) / pieces
                ends = [(x0 + (x1 - x0) * f, y0 + (y1 - y0) * f) for f in (a, b)]
                draw.line([v for x, y in ends for v in _at(x, y)], fill=color, width=2 * _SCALE)
        done += length


def _inked(along: float, dash: Sequence[int]) -> bool:
    """Return whether a dash pattern has a stroke at a place along it."""
    for number, length in enumerate(dash):
        if along < length:
            return number % 2 == 0
        along -= length
    return True


def _at(x: float, y: float) -> tuple[float, float]:
    return x * _SCALE, y * _SCALE
