"""Cards, tables, bars and legends."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hjepa_pl.tools.evaluate.html.elements.markup import Markup, each, join, tag
from hjepa_pl.tools.evaluate.html.elements.style import STYLE

_LONGEST = 40


class Bar(NamedTuple):
    """A row of a bar chart."""

    name: str
    value: float
    """Length of the bar."""
    text: str
    """The value in words."""
    half: float | None = None
    """Half the width of its interval."""
    ours: bool = False
    """Whether it is of the judged network."""
    marks: tuple[float, ...] = ()
    """Values of baselines, drawn on the bar."""


def short(name: str, longest: int = _LONGEST) -> str:
    """Return a name of at most some characters, its end cut off.

    Example:
        >>> short("sulphur-crested cockatoo", 10)
        'sulphur-c…'
    """
    return name if len(name) <= longest else f"{name[: longest - 1].rstrip()}…"


def document(title: str, content: Markup) -> str:
    """Return a whole HTML document."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', content)), lang='en')}\n"


def card(title: str, *content: str) -> Markup:
    """Return a framed part of a section."""
    return tag("section", tag("h3", title), *content, class_="card")


def cards(*items: Markup, columns: int) -> Markup:
    """Return cards in 1, 2 or 3 columns, where there is room for them."""
    return tag("div", *items, class_={1: None, 2: "cards two", 3: "cards"}[columns])


def note(*content: str) -> Markup:
    """Return a paragraph of explanation."""
    return tag("p", *content, class_="note")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], ours: int | None = None) -> Markup:
    """Return a table that scrolls sideways where it is too wide.

    Args:
        head: Headings of the columns.
        rows: Cells; the first one of a row names it.
        ours: Column of the judged network, in bold.
    """
    marked = [tag("th", cell, scope="col", class_=_bold(i, ours)) for i, cell in enumerate(head)]
    body = [
        tag(
            "tr", tag("th", row[0], scope="row"), *(tag("td", c, class_=_bold(i, ours)) for i, c in enumerate(row) if i)
        )
        for row in rows
    ]
    inner = join(tag("thead", tag("tr", *marked)), tag("tbody", *body))
    return tag("div", tag("table", inner), class_="scroll", tabindex=0)


def facts(rows: Iterable[tuple[str, str]]) -> Markup:
    """Return a table of names and texts."""
    body = each("tr", (join(tag("th", name, scope="row"), tag("td", text, class_="text")) for name, text in rows))
    return tag("div", tag("table", tag("tbody", body)), class_="scroll", tabindex=0)


def bars(rows: Sequence[Bar], high: float = 100.0, *, bold: bool = True) -> Markup:
    """Return a bar chart from 0 to `high`, with names and values as text, in bold where they are ours."""
    cells: list[Markup] = []
    for row in rows:
        inside = [tag("span", class_="fill", style=f"width:{_percent(row.value, high)}")]
        if row.half is not None:
            low, top = max(0.0, row.value - row.half), min(high, row.value + row.half)
            style = f"left:{_percent(low, high)};width:{_percent(top - low, high)}"
            inside.append(tag("span", class_="whisker", style=style))
        inside += [
            tag("span", class_=f"mark m{i}", style=f"left:{_percent(value, high)}")
            for i, value in enumerate(row.marks)
        ]  # fmt: skip
        cells += [
            tag("span", short(row.name), class_="name ours" if row.ours and bold else "name", title=_full(row.name)),
            tag("span", *inside, class_="track ours" if row.ours else "track"),
            tag("span", row.text, class_="number ours" if row.ours and bold else "number"),
        ]
    return tag("div", *cells, class_="bars")


def legend(entries: Iterable[tuple[Markup, str]]) -> Markup:
    """Return the meanings of keys: pairs of a key and a text."""
    return tag("div", *(tag("span", key, short(text)) for key, text in entries), class_="legend")


def _percent(value: float, high: float) -> str:
    return f"{100 * min(max(value / high, 0.0), 1.0):.2f}%"


def _full(name: str) -> str | None:
    return name if len(name) > _LONGEST else None


def _bold(index: int, ours: int | None) -> str | None:
    return "ours" if index == ours else None
