"""HTML and SVG put together so that text can never be taken for markup.

Pages are shown to others: no text names a home directory.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterable, Sequence
from typing import final

# In a path, not in the middle of a word or an address.
_HOMES = re.compile(r"(?<![\w.-])(?:/home|/Users|[A-Za-z]:[\\/]Users)[\\/][^\s/\\\"'<>:,;]+")
_VOID = ("br", "img", "meta")


@final
class Markup(str):
    """Text that is HTML already; any other text is escaped where it is put into an element."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """Return an element; children and values of attributes are escaped unless `Markup`.

    Args:
        tag: Its name.
        children: Its content.
        attributes: An underscore stands for a hyphen and one at the end for nothing (`class_`);
            None leaves an attribute out.
    """
    parts = [
        f' {name.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for name, value in attributes.items()
        if value is not None
    ]
    start = f"<{tag}{''.join(parts)}>"
    return Markup(start) if tag in _VOID else Markup(f"{start}{joined(children)}</{tag}>")


def joined(parts: Iterable[str]) -> Markup:
    """Return parts one after the other, escaped unless `Markup`."""
    return Markup("".join(map(_escaped, parts)))


def without_home(text: str) -> str:
    """Return a text with `~` for home directories: that of this user, and any below `/home`."""
    home = os.path.expanduser("~")
    if len(home) > 1 and home != "~":
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    return _HOMES.sub("~", text)


def _escaped(value: object) -> str:
    return value if isinstance(value, Markup) else html.escape(without_home(str(value)))


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers_from: int = 1,
) -> Markup:
    """Return a table whose first column names the rows; a wide one scrolls in itself.

    Args:
        caption: What the table shows.
        columns: Headings of the columns.
        rows: The cells of each row, as many as there are columns.
        numbers_from: Index of the first column of numbers, which are aligned to the right.
    """

    def aligned(index: int) -> str | None:
        return "number" if index >= numbers_from else None

    titles = [element("th", text, scope="col", class_=aligned(i)) for i, text in enumerate(columns)]
    lines = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell, class_=aligned(i)) for i, cell in enumerate(row[1:], 1)),
        )
        for row in rows
    ]
    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *titles)),
        element("tbody", *lines),
    )
    return scrolling(caption, content)


def scrolling(label: str, content: Markup) -> Markup:
    """Return content that, where too wide, scrolls sideways in itself, by keyboard too."""
    return element("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def items(entries: Iterable[str], class_: str | None = None) -> Markup:
    """Return a list."""
    return element("ul", *(element("li", entry) for entry in entries), class_=class_)
