"""The page around a report's sections: one file that asks nothing of any network."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import final

import attrs

from mtlcore.report.charts.files import chart_style
from mtlcore.report.markup import Markup, element, items, joined

# A browser is told too that nothing may be fetched and no script may run.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@final
@attrs.frozen
class Section:
    """A part of a page.

    Args:
        id: The name by which links refer to it.
        title: Its heading.
        content: What is below the heading; an empty section is left out.
    """

    id: str
    title: str
    content: Markup


def page(title: str, lead: Markup, sections: Sequence[Section]) -> str:
    """Return a document with its title, its lead, and its sections with links to them."""
    shown = [section for section in sections if section.content]
    own = resources.files("mtlcore.report.html").joinpath("page.css").read_text("utf-8")
    style = Markup(chart_style() + own)
    links = [element("a", section.title, href=f"#{section.id}") for section in shown]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        element("title", title),
        element("style", style),
    )
    body = element(
        "body",
        element("header", element("h1", title), lead),
        element("nav", items(links), aria_label="Sections"),
        element(
            "main",
            *(
                element("section", element("h2", section.title), section.content, id=section.id)
                for section in shown
            ),
        ),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def paragraph(text: str) -> Markup:
    """Return a remark."""
    return element("p", text, class_="note")


def remarks(notes: Sequence[str]) -> Markup:
    """Return remarks as a list; empty without remarks."""
    return items(notes, class_="note") if notes else Markup()


def alert(*parts: str) -> Markup:
    """Return what a reader must see first."""
    return element("div", joined(parts), class_="alert", role="note")
