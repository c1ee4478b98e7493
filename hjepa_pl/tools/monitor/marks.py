"""Numbers, curves and bars as text of a fixed width."""

import math
from collections.abc import Sequence
from itertools import pairwise

_CURVE, _ASCII_CURVE = "▁▂▃▄▅▆▇█", "_.-~=+*#"


def curve(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """Return a line of `width` marks whose heights are the values, from the lowest to the highest.

    Longer histories are averaged in equal parts. NaN and infinity are left out.

    Example:
        >>> curve([0, 1, 2, 3], 4), curve([1.0, 1.0], 8)
        ('▁▃▆█', '▁▁')
    """
    marks = _ASCII_CURVE if ascii_only else _CURVE
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1:
        return ""
    count = min(width, len(finite))
    edges = [i * len(finite) // count for i in range(count + 1)]
    means = [math.fsum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(marks) - 1) / (high - low) if high > low else 0.0
    return "".join(marks[round((mean - low) * scale)] for mean in means)


def bar(fraction: float, width: int, *, ascii_only: bool = False) -> str:
    """Return a bar of `width` marks of which a fraction is full.

    Example:
        >>> bar(0.5, 8)
        '████░░░░'
    """
    full = round(min(1.0, max(0.0, fraction)) * width)
    return ("#" if ascii_only else "█") * full + ("." if ascii_only else "░") * (width - full)


def fitted(text: str, width: int, *, ascii_only: bool = False) -> str:
    """Return a text padded or cut to a width; the last mark tells that it is cut."""
    if len(text) <= width:
        return f"{text:<{width}}"
    return text[: max(0, width - 1)] + ("~" if ascii_only else "…")


def short(value: float) -> str:
    """Return a number with four digits."""
    return f"{value:.4g}"


def ago(seconds: float) -> str:
    """Return an age in the largest fitting unit."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"
