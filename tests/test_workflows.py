"""What runs on every push is what runs here: workflows call make, with the same versions."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
NAMES = [path.stem for path in WORKFLOWS]
MINOR = re.compile(r"3\.\d+")


def read(path: Path) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load(path.read_text("utf-8"))
    return content


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read(path)["jobs"]
    return found


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(path).values() for step in job["steps"]]


def pinned(name: str) -> str:
    (version,) = re.findall(rf"^{name}==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    return str(version)


def declared() -> list[str]:
    """The Python versions of the core's classifiers."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    return [line.rpartition(" ")[2] for line in classifiers if MINOR.fullmatch(line.split()[-1])]


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_every_command_is_a_make_target_that_is_there(path: Path) -> None:
    commands = [step["run"] for step in steps(path) if "run" in step]
    for command in commands:
        words = command.split()
        assert words[0] == "make", command
        done = subprocess.run(
            ["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{path.name}: {command}: {done.stderr}"
        target = rf"^{words[1]}:"
        assert re.search(target, (ROOT / "Makefile").read_text(), re.MULTILINE), command


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_a_job_may_do_no_more_than_it_must(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert "group" in workflow["concurrency"]
    for name, job in jobs(path).items():
        assert job["timeout-minutes"] <= 360, name
        extra = job.get("permissions", {"contents": "read"})
        if path.stem == "release" and job.get("environment") == "pypi":
            assert extra == {"id-token": "write"}, name
            assert all("uses" in step for step in job["steps"]), "nothing of ours runs beside it"
        else:
            assert extra == {"contents": "read"}, name


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_actions_are_pinned_to_a_major_version(path: Path) -> None:
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w./-]+@(release/)?v\d+", action), action
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_the_tests_run_on_every_declared_python() -> None:
    versions = declared()
    assert versions
    assert jobs(ROOT / ".github/workflows/tests.yml")["test"]["strategy"]["matrix"] == {
        "python": versions
    }
    wheels = jobs(ROOT / ".github/workflows/wheels.yml")["wheels"]["strategy"]["matrix"]
    assert wheels == {"python": [versions[0], versions[-1]]}
    lowest = jobs(ROOT / ".github/workflows/tests.yml")["lower"]["steps"][1]["with"]
    assert lowest == {"python-version": versions[0]}


def test_the_core_is_published_after_tests_and_before_plugins() -> None:
    release = jobs(ROOT / ".github/workflows/release.yml")
    assert release["core"]["needs"] == ["test", "build"]
    assert release["plugins"]["needs"] == ["core"]
    commands = [step["run"] for step in release["build"]["steps"] if "run" in step]
    assert commands == ['make release-check TAG="$GITHUB_REF_NAME"', "make wheels"]


def test_a_commit_is_checked_with_the_pinned_ruff_and_mypy() -> None:
    repos = {repo["repo"]: repo for repo in read(ROOT / ".pre-commit-config.yaml")["repos"]}
    ruff = repos["https://github.com/astral-sh/ruff-pre-commit"]
    assert ruff["rev"] == f"v{pinned('ruff')}"
    (mypy,) = repos["local"]["hooks"]
    # It runs where `make install` put the version of constraints.txt.
    assert mypy["id"] == "mypy" and ".venv/bin/mypy mtlcore plugins/*/src" in mypy["entry"]
    assert pinned("mypy")


def test_dependabot_looks_at_every_distribution() -> None:
    updates = read(ROOT / ".github/dependabot.yml")["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"pip", "github-actions"}
    (pip,) = (update for update in updates if update["package-ecosystem"] == "pip")
    assert pip["directories"] == ["/", "/plugins/*"]


def test_the_form_for_methods_knows_every_kind() -> None:
    from mtlcore.specs import KINDS

    form = read(ROOT / ".github/ISSUE_TEMPLATE/method.yml")
    (kinds,) = (field for field in form["body"] if field.get("id") == "kind")
    assert kinds["attributes"]["options"] == list(KINDS)
