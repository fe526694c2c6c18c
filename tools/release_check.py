"""Check that the core and the plugins of this repository can be released together.

    python tools/release_check.py            they agree with each other
    python tools/release_check.py v0.2.0     and are ready to be published under this tag

Needs the standard library only. Prints one line per problem and exits with 1 if there is any.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Stands for the project's home until it has one; docs/releasing.md says how it is replaced.
PLACEHOLDER = "example.invalid"
# What every distribution states in the same words as the core.
SHARED = ("requires-python", "license", "license-files", "authors", "urls")
SHARED_CLASSIFIERS = ("Development Status ::", "Operating System ::", "Programming Language ::")


def main(arguments: list[str]) -> int:
    """Print what stands in the way of a release."""
    if len(arguments) > 1:
        print("usage: release_check.py [TAG]", file=sys.stderr)
        return 2
    found = [*agreement(), *(readiness(arguments[0]) if arguments else ())]
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    if not found:
        names = ", ".join(folder.name for folder in plugins())
        print(f"mtlcore {core_version()} and its plugins agree: {names}")
    return 1 if found else 0


def agreement() -> Iterator[str]:
    """What differs between distributions that are released together."""
    core, version = project(ROOT), core_version()
    major, minor, *_ = version.split(".")
    series = f">={major}.{minor},<{major}.{int(minor) + 1}"
    extra = core["optional-dependencies"].get("all", [])
    # What has pins of its own is installed apart from the others.
    together = [folder for folder in plugins() if not (folder / "constraints.txt").exists()]
    if sorted(extra) != [f"{folder.name}{series}" for folder in together]:
        yield (
            f"pyproject.toml: the extra 'all' must name each folder of plugins/ with {series}, but "
            "for those that have a constraints.txt"
        )
    for folder in plugins():
        own, file = project(folder), f"plugins/{folder.name}/pyproject.toml"
        if own["version"] != version:
            yield f"{file}: version is {own['version']}, the core's is {version}"
        if f"mtlcore{series}" not in own["dependencies"]:
            yield f"{file}: dependencies must hold 'mtlcore{series}'"
        for key in SHARED:
            if own.get(key) != core[key]:
                yield f"{file}: {key} must be the core's, {core[key]!r}"
        if shared_classifiers(own) != shared_classifiers(core):
            yield f"{file}: classifiers of status, system and language must be the core's"
    for folder in (ROOT, *plugins()):
        heading = next(iter(changes(folder)), "")
        if not re.fullmatch(rf"{re.escape(version)} \((unreleased|\d{{4}}-\d\d-\d\d)\)", heading):
            yield (
                f"{path(folder / 'CHANGELOG.md')}: must begin with '## {version} (unreleased)' or "
                f"'## {version} (YEAR-MONTH-DAY)'"
            )
        if text(folder / "LICENSE") != text(ROOT / "LICENSE"):
            yield f"{path(folder / 'LICENSE')}: is not the core's"
    if f"\nversion: {version}\n" not in text(ROOT / "CITATION.cff"):
        yield f"CITATION.cff: must hold 'version: {version}'"
    yield from overdue((int(major), int(minor)))


def readiness(tag: str) -> Iterator[str]:
    """What must be done before the tag is published."""
    version = core_version()
    if tag != f"v{version}":
        yield f"{tag}: the version here is {version}, its tag is v{version}"
    for folder in (ROOT, *plugins()):
        heading, entry = next(iter(changes(folder).items()), ("", ""))
        if "unreleased" in heading or not entry.strip():
            yield f"{path(folder / 'CHANGELOG.md')}: {version} needs its date and its changes"
    named = [folder / "pyproject.toml" for folder in (ROOT, *plugins())]
    named += [ROOT / "CITATION.cff", ROOT / "SECURITY.md", ROOT / "CODE_OF_CONDUCT.md"]
    named += sorted((ROOT / ".github").rglob("*.yml"))
    for file in named:
        if PLACEHOLDER in text(file):
            yield f"{path(file)}: {PLACEHOLDER} must become the project's home"


def overdue(series: tuple[int, int]) -> Iterator[str]:
    """Names whose deprecation has been warned of for a whole minor version."""
    for source in (ROOT / "mtlcore", *(folder / "src" for folder in plugins())):
        for file in sorted(source.rglob("*.py")):
            for node in ast.walk(ast.parse(text(file), str(file))):
                if isinstance(node, ast.Call) and called(node) == "warn_deprecated":
                    since = next(k.value for k in node.keywords if k.arg == "since")
                    word = ast.literal_eval(since)
                    if tuple(int(part) for part in word.split(".")) < series:
                        yield f"{path(file)}:{node.lineno}: deprecated since {word}: remove it"


def called(node: ast.Call) -> str:
    """The last part of the name of what is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def plugins() -> list[Path]:
    """The folders of the plugins, by name."""
    return sorted(file.parent for file in (ROOT / "plugins").glob("*/pyproject.toml"))


def project(folder: Path) -> dict[str, Any]:
    """The `[project]` table of a distribution."""
    table: dict[str, Any] = tomllib.loads(text(folder / "pyproject.toml"))["project"]
    return table


def core_version() -> str:
    """The version that the core's package states."""
    (version,) = re.findall(r'^__version__ = "(.+)"$', text(ROOT / "mtlcore/_version.py"), re.M)
    return str(version)


def shared_classifiers(table: dict[str, Any]) -> list[str]:
    """The classifiers that every distribution has in common."""
    return [line for line in table["classifiers"] if line.startswith(SHARED_CLASSIFIERS)]


def changes(folder: Path) -> dict[str, str]:
    """Heading -> entry of a changelog, newest first."""
    parts = re.split(r"^## (.+)$", text(folder / "CHANGELOG.md"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def text(file: Path) -> str:
    """A file's content; empty if there is none."""
    return file.read_text("utf-8") if file.is_file() else ""


def path(file: Path) -> str:
    """A file's path for messages."""
    return file.relative_to(ROOT).as_posix()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
