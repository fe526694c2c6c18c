"""Distributions: built, installed into an empty environment, and found there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(file.parent for file in (ROOT / "plugins").glob("*/pyproject.toml"))


def read(path: Path) -> dict:
    return tomllib.loads((path / "pyproject.toml").read_text())


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_is_a_whole_distribution(plugin: Path) -> None:
    project = read(plugin)["project"]
    short = plugin.name.removeprefix("mtlcore-plugin-")
    package = f"mtlcore_{short.replace('-', '_')}"
    assert project["name"] == plugin.name
    assert project["entry-points"]["mtlcore"][short] == f"{package}.plugin"
    assert "mtlcore>=0.1,<0.2" in project["dependencies"]
    assert project["requires-python"] == ">=3.11"
    for name in ("README.md", "CHANGELOG.md", "LICENSE", f"src/{package}/py.typed"):
        assert (plugin / name).is_file()
    assert (plugin / f"src/{package}/__init__.py").read_text() == ""
    assert not (plugin / "tests" / "__init__.py").exists()


def test_metadata_leaves_torch_open_and_constraints_pin_it() -> None:
    dependencies = read(ROOT)["project"]["dependencies"]
    assert "torch>=2.6" in dependencies
    assert any(line.startswith("torch==") for line in _lines(ROOT / "constraints.txt"))


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def build(folder: Path, into: Path) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(into)]
    subprocess.run([*command, str(folder)], check=True, capture_output=True)
    return max(into.glob("*.whl"), key=lambda path: path.stat().st_mtime_ns)


def installed(place: Path, *wheels: Path) -> Path:
    """An environment that holds these wheels alone; what they depend on comes from this one."""
    venv.create(place, with_pip=False)
    site = next((place / "lib").glob("python*/site-packages"))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile",
         "--disable-pip-version-check", "--target", str(site), *map(str, wheels)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return place / "bin" / "python"


def run_in(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run mtlcore of that environment; the libraries it needs are those of this one.

    They are appended to the path as plain folders, so that neither the entry points nor the
    editable installs of this environment are seen.
    """
    libraries = cwd / "libraries"
    if not libraries.exists():
        libraries.mkdir()
        for name in sys.path:
            for item in Path(name).glob("*") if name.endswith("site-packages") else ():
                if "mtlcore" not in item.name and item.suffix != ".pth":
                    (libraries / item.name).symlink_to(item)
    environment = {key: value for key, value in os.environ.items() if key != "MTL_PLUGINS"}
    return subprocess.run(
        [str(python), "-m", "mtlcore", *arguments],
        env={**environment, "PYTHONPATH": str(libraries)},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_wheels_of_the_core_and_one_plugin_in_an_empty_environment(tmp_path: Path) -> None:
    wheels = [build(ROOT, tmp_path), build(PLUGINS[0], tmp_path)]
    python = installed(tmp_path / "venv", *wheels)
    result = run_in(python, "plugins", "--strict-plugins", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = {row["id"]: row for row in json.loads(result.stdout)}
    assert set(found) == {"standard", PLUGINS[0].name.removeprefix("mtlcore-plugin-")}
    assert all(row["status"] == "ok" for row in found.values())
    dry = run_in(
        python, "run", f"--plugin={PLUGINS[0].name.removeprefix('mtlcore-plugin-')}", "--dry-run",
        "--set=data.train=2", "--set=data.val=2", "--set=training.batch_size=2", cwd=tmp_path,
    )  # fmt: skip
    assert dry.returncode == 0, dry.stderr


@pytest.mark.slow
@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_passes_its_tests_in_an_environment_of_its_own(
    plugin: Path, tmp_path: Path
) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    venv.create(tmp_path / "venv", with_pip=True)
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "-c", ROOT / "constraints.txt", build(ROOT, tmp_path), build(plugin, tmp_path),
         "pytest"],
        check=True,
    )  # fmt: skip
    result = subprocess.run(
        [python, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider",
         "-c", ROOT / "pyproject.toml", "--rootdir", plugin, plugin / "tests"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
