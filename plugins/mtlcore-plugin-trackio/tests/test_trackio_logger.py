"""The logger against Trackio's own local store."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trackio.utils
from trackio.sqlite_storage import SQLiteStorage

import mtlcore
from mtlcore.storage import RunOutcome, tag_of, without_nan
from mtlcore.testing import (
    TINY_RUN,
    LoggerContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
    told_lines,
    told_run,
)
from mtlcore_trackio.logger import Trackio


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trackio's store, which it finds when it is imported, elsewhere."""
    place = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("utils", "sqlite_storage", "media.utils", "media.media", "run"):
            for name, value in (("TRACKIO_DIR", place), ("MEDIA_DIR", place / "media")):
                patch.setattr(f"trackio.{module}.{name}", value, raising=False)
        yield place


def rows_of(project: str) -> list[dict[str, Any]]:
    (run,) = SQLiteStorage.get_run_records(project)
    return SQLiteStorage.get_logs(project, run["name"], run_id=run["id"])


def lines_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "step": row["step"],
            "epoch": row["epoch"],
            "split": tag.split("/")[0],
            "task": tag.split("/")[1] if tag.count("/") == 2 else None,
            "metric": tag.split("/")[-1],
            "value": value,
            "seconds": row["seconds"],
        }
        for row in rows
        for tag, value in row.items()
        if tag.startswith(("train/", "val/"))
    ]


class TestContract(LoggerContract):
    def make(self, folder: Path) -> Trackio:
        return Trackio(project=folder.name)

    def arrived(self, folder: Path) -> list[dict[str, Any]]:
        return lines_of(rows_of(folder.name))


def test_everything_of_a_run_is_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    project, out = uuid.uuid4().hex, tmp_path / "run"
    whole = {**TINY_RUN, "loggers": [{"name": "trackio", "project": project}]}
    summary = mtlcore.run(whole, out=str(out))
    assert capfd.readouterr().out == ""
    rows = rows_of(project)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert without_nan(lines_of(rows)) == lines
    (run,) = SQLiteStorage.get_run_records(project)
    assert run["id"] == json.loads((out / "run.json").read_text())["id"]
    config = SQLiteStorage.get_run_config(project, run["name"], run_id=run["id"])
    assert config["training.epochs"] == 2 and config["origins"]["training.epochs"] == "config"
    assert config["summary"] == json.loads((out / "summary.json").read_text())
    assert (config["outcome"], config["_Group"]) == ("finished", None)
    last = {tag: value for row in rows for tag, value in row.items()}
    assert last["final/val/depth/rmse"] == summary["final"]["val"]["depth"]["rmse"]
    media = trackio.utils.MEDIA_DIR
    copy = (media / last["report/predictions"]["file_path"]).read_bytes()
    assert copy[:8] == (out / "report/predictions.png").read_bytes()[:8]
    assert "<svg" in (media / last["report/curves"]["file_path"]).read_text()


def test_mtl_log_sends_a_run_once(tmp_path: Path, mtl: Callable[..., Any]) -> None:
    project, out = uuid.uuid4().hex, tmp_path / "run"
    mtlcore.run(TINY_RUN, out=str(out))
    for _ in range(2):
        done = mtl("log", str(out), "--to", "trackio", "--set", f"project={project}")
        assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = rows_of(project)
    assert without_nan(lines_of(rows)) == lines
    assert sum("report/predictions" in row for row in rows) == 1


def test_the_study_is_the_group(tmp_path: Path) -> None:
    project = uuid.uuid4().hex
    logger = Trackio(project=project)
    logger.start(told_run(tmp_path, group="a study"))
    logger.record(told_lines(1))
    logger.finish(RunOutcome(status="failed", reason="diverged"))
    (run,) = SQLiteStorage.get_run_records(project)
    config = SQLiteStorage.get_run_config(project, run["name"], run_id=run["id"])
    assert config["_Group"] == "a study"
    assert (config["outcome"], config["reason"]) == ("failed", "diverged")
    assert tag_of(told_lines(1)[0]) in rows_of(project)[1]


def test_infinite_values_stay_infinite(tmp_path: Path) -> None:
    project = uuid.uuid4().hex
    logger = Trackio(project=project)
    logger.start(told_run(tmp_path))
    logger.record([{**told_lines(1)[0], "value": math.inf}])
    assert rows_of(project)[1]["train/depth/loss"] == math.inf


def test_the_plugin_can_be_listed_and_explained_without_torch() -> None:
    assert_plugin_is_light("mtlcore_trackio.plugin")
    assert_plugin_is_whole("mtlcore_trackio.plugin")
