"""What answers at once must not import torch: plugin records, look-up and the commands on them."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import mtlcore

PACKAGE = Path(mtlcore.__file__).parent
HEAVY = {"torch", "numpy", "rich", "cattrs", "fsspec"}
ROOMS = ["plugins", "config", "cli", "system"]
SINGLE = ["mtlcore", "mtlcore.errors", "mtlcore.tasks", "mtlcore.standard.plugin"]
IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(name, *sys.modules)
"""


def modules_of(room):
    """Return the names of a room and of its modules."""
    names = [path.stem for path in sorted((PACKAGE / room).glob("*.py"))]
    inner = [f"mtlcore.{room}.{name}" for name in names if name != "__init__"]
    return [f"mtlcore.{room}", *inner]


def loaded_after(code, *arguments):
    """Return the words that a piece of code prints in a process of its own, by line."""
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return [set(line.split()) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    "modules", [*map(modules_of, ROOMS), SINGLE], ids=[*ROOMS, "single modules"]
)
def test_importing_is_light(modules):
    for name, loaded in zip(modules, loaded_after(IMPORT_ALL, *modules), strict=True):
        assert name in loaded
        assert not HEAVY & loaded, f"importing {name} imports {HEAVY & loaded}"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["plugins"], ["list"], ["run", "--help"]], ids=" ".join
)
def test_commands_that_only_look_are_light(arguments):
    code = (
        "import sys\n"
        "from mtlcore.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "print('loaded', *sys.modules)"
    )
    *_, loaded = loaded_after(code, *arguments)
    assert {"loaded", "mtlcore.cli.group"} <= loaded
    assert not HEAVY & loaded


def test_public_names_are_listed_and_unknown_ones_refused():
    assert set(mtlcore.__all__) <= set(dir(mtlcore))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = mtlcore.nonsense


def test_no_compiler_is_imported_before_something_is_trained():
    """What predicts and judges starts in two thirds of the time without it."""
    (loaded,) = loaded_after("import sys, mtlcore.runs, mtlcore.models; print(*sys.modules)")
    assert "torch" in loaded
    assert "torch._dynamo" not in loaded


def test_what_is_fetched_later_is_listed():
    models = importlib.import_module("mtlcore.models")
    assert set(models.__all__) <= set(dir(models))
    assert all(getattr(models, name) is not None for name in models.__all__)
    with pytest.raises(AttributeError, match=r"mtlcore\.models.*nothing"):
        _ = models.nothing
