"""The page of the review forgets no system and no plugin, and what it links to is there."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mtlcore.plugins import KINDS, Plugins

ROOT = Path(__file__).parents[2]
METHODS = ROOT / "docs" / "methods"
SYSTEMS = 236
REFERENCES = {*range(1, 220)}


@pytest.fixture
def review(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "docs" / "extensions")
    return importlib.import_module("review")


@pytest.fixture
def rows(review: Any) -> list[list[str]]:
    return [row for section in review.known()["sections"] for row in section["rows"]]


def links(row: list[str]) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", row[4])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_no_system_and_no_reference_of_the_review_is_forgotten(review: Any) -> None:
    known = review.known()
    named = [
        row for section in known["sections"] if "beyond" not in section for row in section["rows"]
    ]
    assert len(named) == SYSTEMS
    assert {number for row in named for number in map(int, re.findall(r"\b\d+\b", row[1]))} == (
        REFERENCES - {*known["background"]}
    )


def test_a_row_says_its_state_and_why(rows: list[list[str]], review: Any) -> None:
    names = Counter(row[0] for row in rows)
    assert names.total() == len(names), f"twice: {names.most_common(3)}"
    for row in rows:
        name, _, what, state, where = row
        assert state in review.STATES, name
        assert what and where and "|" not in "".join(row), name
        if state in ("here", "partly") and "`mtl " not in where:
            assert links(row), f"{name}: where?"


def test_every_link_leads_somewhere(review: Any) -> None:
    for section in review.known()["sections"]:
        for text in (section["about"], *(row[4] for row in section["rows"])):
            for link in re.findall(r"\]\(([^)]+)\)", text):
                name, _, anchor = link.partition("#")
                page = METHODS / name
                assert page.is_file(), f"{text}: no page {name}"
                assert not anchor or anchor in anchors(page), f"{text}: no part #{anchor} of {name}"


def test_every_plugin_is_linked(rows: list[list[str]]) -> None:
    linked = {link.partition("#")[0] for row in rows for link in links(row)}
    plugins = {page.name.removeprefix("mtlcore-plugin-") for page in (ROOT / "plugins").iterdir()}
    # What stands around methods, such as trackers, is on the page "what works with what".
    around = (ROOT / "docs/compatibility.md").read_text("utf-8").partition("## What works with")[2]
    plugins -= {*re.findall(r"^\| `([\w-]+)` \|", around, re.MULTILINE)}
    missing = sorted(name for name in plugins if f"{name}.md" not in linked)
    assert not missing, f"docs/extensions/review.toml tells nothing of {', '.join(missing)}"


def test_components_are_of_the_plugin_that_is_named(rows: list[list[str]]) -> None:
    plugins = Plugins.from_environment(())
    found = [(c.plugin, c.spec.name) for kind in KINDS for c in plugins.all(kind)]
    installed = {plugin for plugin, _ in found}
    for row in rows:
        told = re.findall(r"`([\w-]+)` of \[(\w+)\]", row[4])
        told += [
            (name, "standard")
            for names in re.findall(
                r"\[([^\]]+)\]\((?:standard|../reference/components)\.md", row[4]
            )
            for name in re.findall(r"`([\w-]+)`", names)
        ]
        for name, plugin in told:
            assert plugin not in installed or plugin == "timm" or (plugin, name) in found, row


def test_the_counts_are_those_of_the_rows(review: Any) -> None:
    first, *rest = review.lines()
    head, *sections = "\n".join(rest).partition("\n## Beside the review")[0].split("\n## ")
    words = [*review.STATES.values()]
    total = Counter[str]()
    for counted, section in zip(head.strip().splitlines()[2:], sections, strict=True):
        title, *numbers = (cell.strip() for cell in counted.strip("|").split("|"))
        states = Counter(row.split(" | ")[3] for row in section.splitlines() if " | " in row)
        assert section.startswith(title)
        assert numbers == [str(states[word]) for word in words], title
        total.update({word: states[word] for word in words})
    told = ", ".join(f"{total[word]} {word}" for word in words)
    assert first == f"Of {total.total()} systems: {told}."
