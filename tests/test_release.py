"""The distributions of this repository agree, and a release that is not ready is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = "tools/release_check.py"
PLUGIN = "plugins/mtlcore-plugin-pcgrad"
FILES = [
    SCRIPT, "pyproject.toml", "mtlcore/_version.py", "mtlcore/_deprecation.py", "CHANGELOG.md",
    "LICENSE", "CITATION.cff", "SECURITY.md", "CODE_OF_CONDUCT.md", ".github",
    *(f"plugins/{folder.name}/{name}" for folder in sorted((ROOT / "plugins").iterdir())
      for name in ("pyproject.toml", "CHANGELOG.md", "LICENSE")),
    *(str(pins.relative_to(ROOT)) for pins in sorted(ROOT.glob("plugins/*/constraints.txt"))),
]  # fmt: skip


def check(root: Path, *tag: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / SCRIPT), *tag], capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the check reads, to be changed at will."""
    for name in FILES:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target)
        else:
            shutil.copy(ROOT / name, target)
    return tmp_path


def change(file: Path, before: str, after: str) -> None:
    text = file.read_text("utf-8")
    assert before in text, f"{file} no longer holds {before!r}"
    file.write_text(text.replace(before, after), "utf-8")


def test_the_distributions_agree() -> None:
    result = check(ROOT)
    assert result.returncode == 0, result.stderr
    assert all(folder.name in result.stdout for folder in (ROOT / "plugins").iterdir())


@pytest.mark.parametrize(
    ("file", "before", "after", "told"),
    [
        ("pyproject.toml", '    "mtlcore-plugin-pcgrad>=0.1,<0.2",\n', "", "extra 'all'"),
        ("pyproject.toml", "plugin-pcgrad>=0.1,<0.2", "plugin-pcgrad>=0.1", "extra 'all'"),
        (f"{PLUGIN}/pyproject.toml", 'version = "0.1.0"', 'version = "0.1.1"', "version is 0.1.1"),
        (f"{PLUGIN}/pyproject.toml", '"mtlcore>=0.1,<0.2"', '"mtlcore>=0.1"', "mtlcore>=0.1,<0.2"),
        (f"{PLUGIN}/pyproject.toml", "The mtlcore authors", "Somebody", "authors"),
        (f"{PLUGIN}/pyproject.toml", "3 - Alpha", "4 - Beta", "classifiers"),
        (f"{PLUGIN}/pyproject.toml", ":: 3.14", ":: 3.15", "classifiers"),
        (f"{PLUGIN}/pyproject.toml", '">=3.11"', '">=3.12"', "requires-python"),
        (f"{PLUGIN}/pyproject.toml", "invalid/mtlcore", "invalid/pcgrad", "urls"),
        (f"{PLUGIN}/pyproject.toml", 'license = "MIT"', 'license = "BSD-3-Clause"', "license"),
        (f"{PLUGIN}/CHANGELOG.md", "## 0.1.0", "## 0.0.9", "0.1.0 (unreleased)"),
        (f"{PLUGIN}/LICENSE", "MIT License", "Licence", "is not the core's"),
        ("CITATION.cff", "version: 0.1.0", "version: 0.0.9", "version: 0.1.0"),
        ("mtlcore/_version.py", '__version__ = "0.1.0"', '__version__ = "0.2.0"', "<0.3"),
    ],
)
def test_what_differs_is_named(copy: Path, file: str, before: str, after: str, told: str) -> None:
    change(copy / file, before, after)
    result = check(copy)
    assert result.returncode == 1
    place = PLUGIN if file.startswith("mtlcore") else file
    assert any(place in line and told in line for line in result.stderr.splitlines())


@pytest.mark.parametrize("name", ["CHANGELOG.md", "LICENSE"])
def test_a_file_that_is_missing_is_named(copy: Path, name: str) -> None:
    (copy / PLUGIN / name).unlink()
    result = check(copy)
    assert result.returncode == 1 and f"{PLUGIN}/{name}" in result.stderr


def test_a_new_plugin_must_be_in_the_extra(copy: Path) -> None:
    shutil.copytree(copy / PLUGIN, copy / "plugins/mtlcore-plugin-new")
    result = check(copy)
    assert result.returncode == 1 and "extra 'all'" in result.stderr


def test_a_tag_needs_dates_and_a_home(copy: Path) -> None:
    result = check(copy, "v0.1.0")
    assert result.returncode == 1
    changelogs = sorted(copy.rglob("CHANGELOG.md"))
    homes = [file for file in copy.rglob("*") if file.is_file() and file.suffix != ".py"
             and "example.invalid" in file.read_text("utf-8")]  # fmt: skip
    told = {line.partition(":")[0] for line in result.stderr.splitlines()}
    assert told == {file.relative_to(copy).as_posix() for file in (*changelogs, *homes)}
    for file in changelogs:
        change(file, "0.1.0 (unreleased)", "0.1.0 (2027-01-31)")
    for file in homes:
        change(file, "example.invalid", "example.org")
    assert check(copy, "v0.1.0").returncode == 0
    result = check(copy, "v0.1.1")
    assert result.returncode == 1 and "its tag is v0.1.0" in result.stderr


def test_an_empty_entry_is_not_complete(copy: Path) -> None:
    (copy / PLUGIN / "CHANGELOG.md").write_text("# Changelog\n\n## 0.1.0 (2027-01-31)\n")
    result = check(copy, "v0.1.0")
    assert f"{PLUGIN}/CHANGELOG.md: 0.1.0 needs its date and its changes" in result.stderr


def test_a_deprecated_name_goes_away_after_one_minor_version(copy: Path) -> None:
    module = copy / "mtlcore" / "old.py"
    module.write_text('warn_deprecated("a", since="0.1", instead="use b")\n')
    assert check(copy).returncode == 0
    module.write_text('\n_deprecation.warn_deprecated("a", since="0.0", instead="use b")\n')
    result = check(copy)
    assert result.returncode == 1
    assert re.search(r"mtlcore/old\.py:2: deprecated since 0\.0", result.stderr)
