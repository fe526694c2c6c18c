"""The page around a report's sections: one file that asks nothing of any network."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import final

import attrs

from mtlcore.report.html.markup import Markup, element, items, joined

# A browser is told too that nothing may be fetched and no script may run.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@final
@attrs.frozen
class Section:
    """A part of a page.

    Args:
        id: what links to it name.
        title: its heading.
        content: what is below it; an empty section is left out.
    """

    id: str
    title: str
    content: Markup


def page(title: str, lead: Markup, sections: Sequence[Section]) -> str:
    """A whole document: its title, what comes first, and its sections with links to them."""
    there = [section for section in sections if section.content]
    style = Markup(resources.files("mtlcore.report.html").joinpath("page.css").read_text("utf-8"))
    links = [element("a", section.title, href=f"#{section.id}") for section in there]
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
                for section in there
            ),
        ),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def charts(figures: Sequence[Markup]) -> Markup:
    """Charts beside each other where there is room."""
    return element("div", *figures, class_="charts") if figures else Markup()


def paragraph(text: str) -> Markup:
    """A remark."""
    return element("p", text, class_="note")


def remarks(notes: Sequence[str]) -> Markup:
    """Remarks as a list; nothing where there are none."""
    return items(notes, class_="note") if notes else Markup()


def alert(*parts: str) -> Markup:
    """What a reader must see first."""
    return element("div", joined(parts), class_="alert", role="note")
