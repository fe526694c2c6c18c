"""What tests of any tree and any command line share: valid inputs with something changed."""

from __future__ import annotations

import copy
import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: What files and command lines of strangers have in the place of what belongs there.
WRONG: list[Any] = [
    None, True, False, 0, -1, 1, 3.5, 2**70, 10**400, -0.0, 1e300, math.nan, math.inf, -math.inf,
    "", "x", "\x00", "\ud800", "../../x", "a" * 300, "<b>", "ä", "-1", "nan", [], {}, [[]], [None],
    {"": {}}, {"x": None}, [1, 2, 3], ["depth", "depth"], [[[[1]]]], {"name": "equal"},
]  # fmt: skip

# The same examples each time: what breaks here breaks everywhere.
for name, number in {"fast": 20, "deep": 300}.items():
    settings.register_profile(
        name, max_examples=number, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def _place(tree: Any, draw: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Keys that lead to some place in a tree; a large table is as likely as a small one."""
    at: tuple[Any, ...] = ()
    while isinstance(tree, dict | list) and tree and draw(st.integers(0, 3)):
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        at = (*at, draw(st.sampled_from(keys)))
        tree = tree[at[-1]]
    return at


def _mutate(tree: Any, draw: Callable[[Any], Any]) -> Any:
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        place = _place(tree, draw)
        wrong = copy.deepcopy(draw(st.sampled_from(WRONG)))
        if not place:
            tree = wrong if draw(st.integers(0, 3)) == 0 else tree
            continue
        table = tree
        for key in place[:-1]:
            table = table[key]
        match draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"])):
            case "replace":
                table[place[-1]] = wrong
            case "remove":
                del table[place[-1]]
            case "rename" if isinstance(table, dict):
                table[draw(st.sampled_from(["", "name", "x", "depth", "\ud800"]))] = table.pop(
                    place[-1]
                )
            case _ if isinstance(table, list):
                table.append(wrong)
            case _:
                table[draw(st.sampled_from(["", "name", "x", "$tensor", "$dict"]))] = wrong
    return tree


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """Runs without a report: it takes longer than small runs, and is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtlcore.runs.execution.write_report", lambda *_: [])
        yield


@pytest.fixture(scope="session")
def mutated() -> Callable[[Any], st.SearchStrategy[Any]]:
    """A strategy of a tree with up to three things changed: `data.draw(mutated(tree))`."""

    def strategy(tree: Any) -> st.SearchStrategy[Any]:
        return st.composite(lambda draw: _mutate(tree, draw))()

    return strategy


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Loads a program of the repository, such as "tools/results.py", as a module."""

    def load(path: str) -> ModuleType:
        file = Path(__file__).parents[1] / path
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
