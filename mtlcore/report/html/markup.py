"""HTML put together so that text can never be taken for markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import final

_VOID = ("br", "img", "meta")


@final
class Markup(str):
    """Text that is HTML already; any other text is escaped where it is put into an element."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """An element; its children and the values of its attributes are escaped unless `Markup`.

    Args:
        tag: its name.
        children: what is in it.
        attributes: an underscore stands for a hyphen and one at the end for nothing (`class_`);
            None leaves an attribute out.
    """
    parts = [
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    ]
    start = f"<{tag}{''.join(parts)}>"
    return Markup(start) if tag in _VOID else Markup(f"{start}{joined(children)}</{tag}>")


def joined(parts: Iterable[str]) -> Markup:
    """Parts one after the other, escaped unless `Markup`."""
    return Markup(
        "".join(part if isinstance(part, Markup) else html.escape(part) for part in parts)
    )


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers_from: int = 1,
) -> Markup:
    """A table with a caption, whose first column names the rows; wide ones scroll in themselves.

    Args:
        caption: what the table shows.
        columns: their headings.
        rows: as many cells each.
        numbers_from: the first column of numbers, which are set to the right.
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
    """Content that scrolls sideways in itself, by keyboard too, where it is too wide."""
    return element("div", content, class_="scroll", role="region", aria_label=label, tabindex="0")


def items(entries: Iterable[str], class_: str | None = None) -> Markup:
    """A list."""
    return element("ul", *(element("li", entry) for entry in entries), class_=class_)
