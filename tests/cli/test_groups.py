"""`mtl groups` from the run to the study that trains the groups."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mtlcore.cli import main

_TINY = [
    "--set=data.train=6", "--set=data.val=4", "--set=data.size=32x32", "--set=data.workers=0",
    "--set=model.backbone.width=0.03125", "--set=training.steps=4", "--set=training.batch_size=3",
    "--set=training.threads=1",
]  # fmt: skip


def _mtl(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, no_pictures: None) -> Path:
    place = tmp_path_factory.mktemp("groups") / "run"
    result = _mtl("run", *_TINY, "--set=balancer.name=unit-norm", "--out", str(place))
    assert result.exit_code == 0, result.output
    return place


def test_from_cosines_to_a_study(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "groups"
    result = _mtl("groups", str(run), "--by", "cosine", "--budget", "2", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "cosine: what runs recorded" in result.output and "written:" in result.output
    assert (out / "relations.svg").read_text().startswith("<svg")
    assert "segmentation" in (out / "relations.md").read_text()
    prepared = _mtl("study", str(out / "study.toml"), "--out", str(out / "study"), "--prepare")
    assert prepared.exit_code == 0, prepared.output
    cells = prepared.output.split()
    assert sum("single-task" in cell for cell in cells) == 4 * 3
    assert sum("together" in cell for cell in cells) == 3


def test_as_data(run: Path) -> None:
    result = _mtl("groups", str(run), "--by", "cosine", "--budget", "3", "--json")
    data = json.loads(result.output)
    assert sorted(task for group in data["groups"] for task in group) == sorted(data["tasks"])
    assert len(data["pairs"]) == 4 * 3


def test_pairs_are_written_for_who_has_none(run: Path, tmp_path: Path) -> None:
    told = _mtl("groups", str(run), "--by", "transfer")
    assert told.exit_code == 2
    assert "no finished run of: segmentation; depth; normals; edges" in told.output
    out = tmp_path / "pairs"
    told = _mtl("groups", str(run), "--by", "transfer", "--out", str(out))
    assert told.exit_code == 2 and "pairs.toml" in told.output
    prepared = _mtl("study", str(out / "pairs.toml"), "--out", str(out / "pairs"), "--prepare")
    assert prepared.exit_code == 0, prepared.output


def test_what_was_not_recorded(run: Path) -> None:
    result = _mtl("groups", str(run))
    assert result.exit_code == 2
    assert "recorded no 'affinity' of pairs of tasks" in result.output
    result = _mtl("groups", str(run), "--by", "rsa")
    assert result.exit_code == 2
    assert "networks of one task each" in result.output


def test_networks_of_single_tasks(tmp_path: Path, no_pictures: None) -> None:
    runs = []
    for task in ("segmentation", "depth", "normals"):
        runs.append(str(tmp_path / task))
        result = _mtl("run", *_TINY, f"--set=tasks=['{task}']", "--out", runs[-1])
        assert result.exit_code == 0, result.output
    data = json.loads(_mtl("groups", *runs, "--by", "rsa", "--budget", "1", "--json").output)
    assert data["directed"] is False
    values = {(p["source"], p["target"]): p["mean"] for p in data["pairs"]}
    assert all(-1 <= value <= 1 for value in values.values())
    assert values["depth", "normals"] == values["normals", "depth"]
    assert len(set(values.values())) == 3
