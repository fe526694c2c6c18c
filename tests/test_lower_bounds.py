"""The declared ranges of dependencies: pins of their lower ends, and those of constraints.txt."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "lower_bounds.py"
FILES = [ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))]


def strings(value: Any) -> list[str]:
    """Every string below a table or list."""
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [text for item in values for text in strings(item)]


def declared() -> list[Requirement]:
    """What the core and the plugins require, without each other."""
    found = []
    for file in FILES:
        content = tomllib.loads(file.read_text("utf-8"))
        tables = ("dependencies", "optional-dependencies")
        found += [
            *strings(content["build-system"]["requires"]),
            *strings([content["project"].get(table, []) for table in tables]),
        ]
    return [r for r in map(Requirement, found) if not r.name.startswith("mtlcore")]


def lower_bounds(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False
    )


def pinned(lines: str) -> dict[str, Version]:
    """Name -> version of a file of exact pins."""
    pins = [Requirement(line) for line in lines.splitlines() if line and line[0] != "#"]
    versions = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    assert all(version.startswith("==") for version in versions.values())
    return {name: Version(version[2:]) for name, version in versions.items()}


def test_every_dependency_is_pinned_to_its_lowest_release() -> None:
    result = lower_bounds(SCRIPT)
    assert result.returncode == 0, result.stderr
    pins = pinned(result.stdout)
    names = {canonicalize_name(requirement.name) for requirement in declared()}
    assert {"torch", "click", "hatchling", "scipy", "pytest", "sphinx"} <= names
    assert set(pins) == names
    bounds = {str(s) for r in declared() for s in r.specifier if s.operator == ">="}
    for requirement in declared():
        pin = pins[canonicalize_name(requirement.name)]
        assert pin in requirement.specifier, f"{requirement}: pinned to {pin}"
        assert f">={pin}" in bounds, f"{requirement}: nobody declares {pin}"


def test_a_pin_of_ones_own_replaces_the_declared_bound() -> None:
    plain, other = pinned(lower_bounds(SCRIPT).stdout), lower_bounds(SCRIPT, "torch==99.0")
    assert pinned(other.stdout) == plain | {"torch": Version("99.0")}
    unknown = lower_bounds(SCRIPT, "torhc==2.6")
    assert unknown.returncode == 1
    assert "torhc" in unknown.stderr


@pytest.mark.parametrize("requirement", ["numpy", "numpy<3", "numpy==1.*"])
def test_a_dependency_without_a_lower_bound_is_refused(requirement: str, tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    script = tmp_path / "tools" / SCRIPT.name
    script.write_bytes(SCRIPT.read_bytes())
    (tmp_path / "pyproject.toml").write_text(
        f'[build-system]\nrequires = []\n[project]\nname = "x"\ndependencies = ["{requirement}"]\n'
    )
    result = lower_bounds(script)
    assert result.returncode == 1
    assert f"{requirement}: no lower bound; write numpy>=VERSION" in result.stderr


def test_the_highest_of_several_bounds_counts(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    script = tmp_path / "tools" / SCRIPT.name
    script.write_bytes(SCRIPT.read_bytes())
    plugin = tmp_path / "plugins" / "x-plugin"
    plugin.mkdir(parents=True)
    head = '[build-system]\nrequires = ["Hatch_ling>=1.9"]\n[project]\n'
    (tmp_path / "pyproject.toml").write_text(
        f'{head}name = "x"\ndependencies = ["a>=1.10,<2"]\n'
        'optional-dependencies.all = ["x-plugin", "x[more]", "b~=3.1"]\n'
    )
    (plugin / "pyproject.toml").write_text(
        f'{head}name = "x-plugin"\ndependencies = ["x>=0.1", "A>=1.9"]\n'
    )
    result = lower_bounds(script)
    assert result.stdout.split() == ["a==1.10", "b==3.1", "hatch-ling==1.9"], result.stderr


def test_constraints_pin_every_dependency_inside_its_range() -> None:
    # What is installed apart from the others has pins of its own.
    files = [*ROOT.glob("plugins/*/constraints.txt"), ROOT / "constraints.txt"]
    pins = {name: pin for file in files for name, pin in pinned(file.read_text("utf-8")).items()}
    for requirement in declared():
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt does not pin {requirement.name}"
        assert pin in requirement.specifier, f"constraints.txt: {pin} is outside {requirement}"
