"""The plan of the house in docs/architecture.md is the one that the imports draw."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mtlcore"
#: Public names, and what starts the command: they may use every room.
OUTSIDE = {"", "_version", "_deprecation", "__main__"}
SHELVES = {"standard", "datasets", "testing"}


@attrs.frozen
class Import:
    """One import of a module of the core by another."""

    source: str
    target: str
    place: str


def modules() -> dict[str, Path]:
    """Every module of the core by its dotted name below mtlcore; a package by its own."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "templates":
            found[".".join(part for part in parts if part != "__init__")] = file
    return found


MODULES = modules()


def imports(source: str, code: str) -> Iterator[Import]:
    """All imports in a module, those in functions and for type checkers too."""
    for node in ast.walk(ast.parse(code)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "mtlcore":
                yield Import(source, module_of(name), f"{source or '__init__'}:{node.lineno}")


def module_of(name: str) -> str:
    """The module that an imported name comes from: `mtlcore.runs.load_run` is from `runs`."""
    parts = name.split(".")[1:]
    while ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts)


def room_of(module: str) -> str:
    return module.split(".")[0]


def plan() -> list[str]:
    """The rooms in the order of the table, the lowest first."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    table = text.split("## The rooms", 1)[1].split("\n## ", 1)[0]
    return [
        name.removesuffix(".py").rstrip("/") for name in re.findall(r"^\| `(.+?)`", table, re.M)
    ]


ALL = [found for name, file in MODULES.items() for found in imports(name, file.read_text("utf-8"))]


def test_every_room_is_in_the_plan() -> None:
    assert sorted(plan()) == sorted({room_of(module) for module in MODULES} - OUTSIDE)


def test_no_arrow_runs_up() -> None:
    level = {room: number for number, room in enumerate(plan())}
    wrong = [
        f"{found.place} imports {found.target}"
        for found in ALL
        if room_of(found.source) not in OUTSIDE
        and room_of(found.target) not in OUTSIDE
        and level[room_of(found.target)] > level[room_of(found.source)]
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_are_entered_by_their_doors() -> None:
    wrong = [
        f"{found.place} imports {found.target}"
        for found in ALL
        if "." in found.target
        and room_of(found.target) not in {*SHELVES, room_of(found.source)}
        and room_of(found.source) not in OUTSIDE
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", plan())
def test_no_cycle_within_a_room(room: str) -> None:
    graph: dict[str, set[str]] = {}
    for found in ALL:
        inside = room_of(found.source) == room_of(found.target) == room
        # A door imports what it opens to.
        if inside and found.source != room and found.source != found.target:
            graph.setdefault(found.source, set()).add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_vocabulary_is_small() -> None:
    """At most fourteen modules lie flat at the top; what begins with an underscore is private."""
    flat = {name for name, file in MODULES.items() if "." not in name and file.stem == name}
    assert len(flat - OUTSIDE) <= 14


def test_an_arrow_that_runs_up_is_seen() -> None:
    code = "def late():\n    from mtlcore.cli import main\n"
    (found,) = imports("errors", code)
    level = plan().index
    assert found.target == "cli" and level("cli") > level("errors")


def is_package(module: str) -> bool:
    return MODULES[module].name == "__init__.py"


#: Modules whose names anybody may use: the vocabulary at the top, doors, and what a page documents.
VOCABULARY = [m for m in MODULES if "." not in m and m not in OUTSIDE and not is_package(m)]
DOORS = ["", *(m for m in MODULES if m and "." not in m and is_package(m) and m not in SHELVES)]


DOCUMENTED = sorted(
    {
        module_of(name)
        for page in (ROOT / "docs").rglob("*.md")
        for name in re.findall(r"^\.\. automodule:: (mtlcore\S*)$", page.read_text("utf-8"), re.M)
    }
)


@pytest.mark.parametrize("module", sorted({*VOCABULARY, *DOORS, *DOCUMENTED}))
def test_what_is_public_is_there(module: str) -> None:
    imported = importlib.import_module(f"mtlcore.{module}".rstrip("."))
    names = imported.__all__
    assert names and len(set(names)) == len(names)
    assert not [name for name in names if not hasattr(imported, name)]


def defined(code: str) -> set[str]:
    """The names without an underscore that a module defines at its top."""
    names: set[str] = set()
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id for target in targets for name in ast.walk(target)
                      if isinstance(name, ast.Name)}  # fmt: skip
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("module", VOCABULARY)
def test_the_vocabulary_is_public(module: str) -> None:
    public = set(importlib.import_module(f"mtlcore.{module}").__all__)
    assert defined(MODULES[module].read_text("utf-8")) == public


def test_a_name_that_is_not_listed_is_seen() -> None:
    code = "import a\nX: int = 1\n_y = Z, W = 1, 2\ndef f(): ...\nclass _C: ...\n"
    assert defined(code) == {"X", "Z", "W", "f"}
