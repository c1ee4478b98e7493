"""Axes of a chart, in SVG."""

import math
from collections.abc import Sequence

from hjepa_pl.tools.evaluate.html.elements.markup import Markup, join, tag


class Axes:
    """A chart's frame: from values to positions, with ticks and titles.

    Args:
        x: Lowest and highest value.
        y: The same.
        size: Width and height in SVG units, text being 12 of them high.
        log: Whether both axes are logarithmic.
    """

    left, right, top, bottom = 52.0, 12.0, 10.0, 40.0

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], size: tuple[int, int] = (380, 270), log: bool = False
    ) -> None:
        self.size, self.log = size, log
        self._x, self._y = (self._scale(x[0]), self._scale(x[1])), (self._scale(y[0]), self._scale(y[1]))

    def x(self, value: float) -> float:
        """Return the horizontal position of a value."""
        low, high = self._x
        return self.left + (self._scale(value) - low) / (high - low) * (self.size[0] - self.left - self.right)

    def y(self, value: float) -> float:
        """Return the vertical position of a value."""
        low, high = self._y
        return (
            self.size[1]
            - self.bottom
            - (self._scale(value) - low) / (high - low) * (self.size[1] - self.top - self.bottom)
        )

    def path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        """Return the path through some points."""
        return "M" + "L".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in zip(xs, ys, strict=True))

    def draw(
        self, content: Sequence[Markup], titles: tuple[str, str], ticks: tuple[Sequence[float], Sequence[float]],
        label: str,
    ) -> Markup:  # fmt: skip
        """Return the chart.

        Args:
            content: What is drawn on the grid.
            titles: Of the horizontal and the vertical axis.
            ticks: Values on the horizontal and the vertical axis.
            label: What the chart shows, for readers who cannot see it.
        """
        height, right = self.size[1], self.size[0] - self.right
        foot = height - self.bottom
        grid = [tag("path", d=f"M{self.left},{self.y(v):.1f}H{right}", stroke="#d8dee4") for v in ticks[1]]
        grid.append(tag("path", d=f"M{self.left},{self.top}V{foot}H{right}", stroke="#1b1f24", fill="none"))
        grid += [tag("path", d=f"M{self.x(v):.1f},{foot}v4", stroke="#1b1f24") for v in ticks[0]]
        words = [tag("text", tick_text(v), x=self.x(v), y=foot + 17, text_anchor="middle") for v in ticks[0]]
        words += [tag("text", tick_text(v), x=self.left - 6, y=self.y(v) + 4, text_anchor="end") for v in ticks[1]]
        middle = (self.top + foot) / 2
        words += [
            tag("text", titles[0], x=(self.left + right) / 2, y=height - 5.0, text_anchor="middle"),
            tag("text", titles[1], transform=f"translate(13 {middle:.0f}) rotate(-90)", text_anchor="middle"),
        ]
        return picture(self.size, join(*grid, *content, *words), label)

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value


def picture(size: tuple[int, int], content: Markup, label: str) -> Markup:
    """Return an SVG of a size, as wide as there is room for."""
    return tag(
        "svg", content, viewBox=f"0 0 {size[0]} {size[1]}", width=size[0], height=size[1], class_="chart", role="img",
        aria_label=label,
    )  # fmt: skip


def tick_text(value: float) -> str:
    """Return the text of a tick.

    Example:
        >>> tick_text(0.01), tick_text(10.0), tick_text(1e-7)
        ('0.01', '10', '1e-7')
    """
    return f"{value:g}" if value == 0 or value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")


def powers(low: float, high: float) -> list[float]:
    """Return the powers of ten from `low` to `high`, at most six.

    Example:
        >>> powers(0.02, 150)
        [0.1, 1.0, 10.0, 100.0]
    """
    found = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [float(f"1e{exponent}") for exponent in found[:: -(-len(found) // 6) or 1]]
