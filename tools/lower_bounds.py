"""Print the lower bound of every declared dependency as an exact pin, for `pip install -c`.

Reads `dependencies`, the extras and the build requirements of the core and of every plugin. Where
several name a package, the highest bound counts, because all must be met.

    python tools/lower_bounds.py                  # every declared lower bound
    python tools/lower_bounds.py torch==2.13.0    # the same, with this pin in place of torch's own
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def projects(root: Path) -> list[Path]:
    """Return the pyproject.toml of the core and of every plugin."""
    return [root / "pyproject.toml", *sorted(root.glob("plugins/*/pyproject.toml"))]


def requirements(file: Path) -> Iterator[Requirement]:
    """Yield what a distribution declares: dependencies, extras and build requirements."""
    content = tomllib.loads(file.read_text("utf-8"))
    project = content["project"]
    declared = [*content["build-system"]["requires"], *project.get("dependencies", ())]
    for extra in project.get("optional-dependencies", {}).values():
        declared += extra
    yield from map(Requirement, declared)


def lower_bound(requirement: Requirement) -> Version:
    """Return the lowest release that a requirement allows.

    Raises:
        ValueError: it has no lower bound.
    """
    found = [
        Version(specifier.version)
        for specifier in requirement.specifier
        if specifier.operator in (">=", "~=", "==") and not specifier.version.endswith(".*")
    ]
    if not found:
        raise ValueError(f"{requirement}: no lower bound; write {requirement.name}>=VERSION")
    return max(found)


def pins(root: Path, replaced: list[str]) -> list[str]:
    """Return the pins, sorted by name.

    Args:
        root: the repository.
        replaced: pins, such as `torch==2.13.0`, that take the place of declared bounds.

    Raises:
        ValueError: a requirement has no lower bound, or `replaced` names none that is declared.
    """
    files = projects(root)
    own = {canonicalize_name(tomllib.loads(f.read_text("utf-8"))["project"]["name"]) for f in files}
    bounds: dict[str, Version] = {}
    for file in files:
        for requirement in requirements(file):
            name = canonicalize_name(requirement.name)
            if name not in own:
                bound = lower_bound(requirement)
                bounds[name] = max(bound, bounds.get(name, bound))
    for requirement in map(Requirement, replaced):
        name = canonicalize_name(requirement.name)
        if name not in bounds:
            raise ValueError(f"{requirement}: {name} is not declared anywhere")
        bounds[name] = lower_bound(requirement)
    return [f"{name}=={bounds[name]}" for name in sorted(bounds)]


if __name__ == "__main__":
    try:
        print(*pins(ROOT, sys.argv[1:]), sep="\n")
    except ValueError as error:
        sys.exit(f"lower_bounds.py: {error}")
