"""Tables of all systems that a review of multi-task learning names, from review.toml."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KNOWN = Path(__file__).parent / "review.toml"
STATES = {"here": "here", "partly": "partly", "not yet": "not there yet", "outside": "outside"}


def known() -> dict[str, Any]:
    """What stands in review.toml."""
    return tomllib.loads(KNOWN.read_text("utf-8"))


def lines() -> Iterator[str]:
    """How many of each state there are, then a table for each section, as Markdown."""
    sections = known()["sections"]
    named = [section for section in sections if "beyond" not in section]
    total = Counter(row[3] for section in named for row in section["rows"])
    told = ", ".join(f"{total[state]} {word}" for state, word in STATES.items())
    yield f"Of {total.total()} systems: {told}."
    yield from (
        "",
        f"| section | {' | '.join(STATES.values())} |",
        "| --- | ---: | ---: | ---: | ---: |",
    )
    for section in named:
        counts = Counter(row[3] for row in section["rows"])
        yield f"| {section['title']} | {' | '.join(str(counts[state]) for state in STATES)} |"
    for section in sections:
        yield from ("", f"## {section['title']}", "", section["about"], "")
        yield from (
            "| system | reference | what it is | | where, or what is missing |",
            "| --- | --- | --- | --- | --- |",
        )
        for name, reference, what, state, where in section["rows"]:
            yield f"| {name} | {reference} | {what} | {STATES[state]} | {where} |"
