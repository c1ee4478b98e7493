"""HTML and SVG as text in which nothing stays unescaped by accident."""

from collections.abc import Iterable
from html import escape

_VOID = frozenset({"meta", "img", "br", "col"})


class Markup(str):
    """HTML that is inserted as it is; any other text is escaped."""

    __slots__ = ()


def join(*parts: str) -> Markup:
    """Return parts one after the other; those that are not `Markup` are escaped.

    Example:
        >>> join(tag("b", "R&D"), " <3")
        '<b>R&amp;D</b> &lt;3'
    """
    return Markup("".join(part if isinstance(part, Markup) else escape(part, quote=False) for part in parts))


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """Return an element.

    Args:
        name: Of the element.
        children: Its content; what is not `Markup` is escaped.
        attributes: By name, with `_` for `-`; one at the end is dropped (`class_`), and so are those that are None.

    Example:
        >>> tag("a", "x < y", href="#top", class_="big", id=None)
        '<a href="#top" class="big">x &lt; y</a>'
    """
    words = [name]
    words += [f'{k.rstrip("_").replace("_", "-")}="{escape(_text(v))}"' for k, v in attributes.items() if v is not None]
    start = f"<{' '.join(words)}>"
    return Markup(start) if name in _VOID else Markup(f"{start}{join(*children)}</{name}>")


def each(name: str, /, items: Iterable[str], **attributes: str | float | None) -> Markup:
    """Return an element around each item."""
    return join(*(tag(name, item, **attributes) for item in items))


def _text(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
