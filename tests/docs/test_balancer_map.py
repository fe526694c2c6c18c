"""The map of balancers has a row for each, and what it says of them is so."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from mtlcore.plugins import Plugins

ROOT = Path(__file__).parents[2]
PLUGINS = Plugins.from_environment(())
BALANCERS = {c.spec.name: c for c in PLUGINS.all("balancers")}


@pytest.fixture
def balancer_map(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "docs" / "extensions")
    return importlib.import_module("balancer_map")


def rows(text: list[str]) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text]
    found = [(re.match(r"\[`([^`]+)`\]", row[0]), row) for row in cells]
    return {match.group(1): row for match, row in found if match}


def test_each_balancer_has_a_row_with_a_guarantee(balancer_map: Any) -> None:
    table = rows([*balancer_map.lines(PLUGINS)])
    assert set(table) == set(BALANCERS)
    silent = [name for name, row in table.items() if row[3] == "-"]
    assert not silent, f"docs/extensions/balancers.toml says no guarantee of {silent}"
    assert {len(row) for row in table.values()} == {11}


def test_what_a_step_needs_is_what_the_class_says(balancer_map: Any) -> None:
    table = rows([*balancer_map.lines(PLUGINS)])
    expected = {
        "equal": ("-", "1 backward"),
        "unit-norm": ("-", "K backward"),
        "famo": ("the losses after the step", "1 backward, 1 more forward"),
        "dtp": ("validation metrics", "1 backward"),
        "ira": ("elementwise losses", "1 backward"),
        "auto-lambda": (
            "a validation batch",
            "K backward, as many and 1 forward on the validation batch",
        ),
        "rotograd": ("features", "K backward through the heads, 1 through the trunk"),
    }
    assert {name: tuple(table[name][1:3]) for name in expected} == expected


def test_published_and_measured_numbers_are_where_they_belong(balancer_map: Any) -> None:
    table = rows([*balancer_map.lines(PLUGINS)])
    assert table["nash-mtl"][4:] == [
        "-4.04 a",
        "+6.82 d",
        "+2.84 g",
        "+72.90 h",
        "3.09",
        "4.58",
        "13.17",
    ]
    assert table["equal"][8:] == ["5.45", "17.00", "17.17"]
    assert table["upgrad"][4:] == ["-"] * 5 + ["17.00", "19.83"]
    tables = balancer_map.known()["published"]
    assert {t["benchmark"] for t in tables} == set(balancer_map.BENCHMARKS)
    assert len({t["mark"] for t in tables}) == len(tables)
    for published in tables:
        unknown = set(published["values"]) - set(balancer_map.known()["guarantees"])
        assert not unknown, f"{unknown} of {published['source']} is no balancer"


@pytest.mark.parametrize("name", sorted(BALANCERS))
def test_the_guarantee_is_tested_where_it_says(name: str, balancer_map: Any) -> None:
    path, _, test = balancer_map.known()["guarantees"][name]["tested"].partition("::")
    assert re.search(rf"^(def|class) {test}\b", (ROOT / path).read_text("utf-8"), re.MULTILINE)


def test_nothing_is_said_of_what_an_installed_plugin_does_not_have(balancer_map: Any) -> None:
    """Entries of plugins that are not installed are not shown."""
    installed = {component.plugin for component in BALANCERS.values()}
    for name, entry in balancer_map.known()["guarantees"].items():
        if entry["plugin"] in installed:
            assert name in BALANCERS and BALANCERS[name].plugin == entry["plugin"], name
