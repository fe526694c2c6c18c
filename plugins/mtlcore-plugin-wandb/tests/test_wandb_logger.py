"""The logger against wandb's own offline files."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from wandb.proto.wandb_internal_pb2 import Record

import mtlcore
from mtlcore.storage import RunOutcome, without_nan
from mtlcore.testing import (
    TINY_RUN,
    LoggerContract,
    NotesDisplay,
    assert_plugin_is_light,
    assert_plugin_is_whole,
    told_lines,
    told_run,
)
from mtlcore_wandb.logger import WeightsAndBiases

_FILE_HEADER, _HEADER, _BLOCK = 7, 7, 32768


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of wandb's offline files."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return tmp_path / "wandb"


def records(file: Path) -> Iterator[Record]:
    """Read a file of wandb: a log as LevelDB has it, of blocks with parts of records."""
    content, at, whole = file.read_bytes(), _FILE_HEADER, b""
    while at + _HEADER <= len(content):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:
            at += left
            continue
        _, length, part = struct.unpack_from("<IHB", content, at)
        at += _HEADER
        whole += content[at : at + length]
        at += length
        if part in (1, 4):  # the whole of a record, or its last part
            yield Record.FromString(whole)
            whole = b""


def newest(folder: Path) -> list[Record]:
    """The records of the newest file, once it is whole: wandb writes it in another process."""
    files = sorted(folder.glob("offline-run-*/run-*.wandb"), key=lambda file: file.parent.name)
    for _ in range(300):
        found = list(records(files[-1]))
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{files[-1]}: has no end")


def rows_of(found: list[Record]) -> list[dict[str, Any]]:
    """The rows of a run's history, with wandb's own step."""
    return [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json)
         for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]  # fmt: skip


def lines_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "step": row["step"],
            "epoch": row["epoch"],
            "split": tag.split("/")[0],
            "task": tag.split("/")[1] if tag.count("/") == 2 else None,
            "metric": tag.split("/")[-1],
            "value": float(value),
            "seconds": row["seconds"],
        }
        for row in rows
        for tag, value in row.items()
        if tag.startswith(("train/", "val/"))
    ]


class TestContract(LoggerContract):
    @pytest.fixture(autouse=True)
    def _files(self, offline: Path) -> None:
        self.files, self.made = offline, list[WeightsAndBiases]()

    def make(self, folder: Path) -> WeightsAndBiases:
        if self.made:
            self.die()
            time.sleep(1.1)  # the folder of a start is named after its second
        self.made.append(WeightsAndBiases())
        return self.made[-1]

    def die(self) -> None:
        """What wandb does when the process of a run ends before the run does."""
        run = getattr(self.made[-1], "_run", None)
        if run is not None:
            run.finish(exit_code=255)

    def arrived(self, folder: Path) -> list[dict[str, Any]]:
        self.die()
        return lines_of(rows_of(newest(self.files)))


def test_everything_of_a_run_is_there(
    tmp_path: Path, offline: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, display = tmp_path / "run", NotesDisplay()
    summary = mtlcore.run(TINY_RUN, plugins=["wandb"], out=str(out), display=display)
    assert not [note for note in display.notes if "failed" in note]
    assert capfd.readouterr().out == ""
    found = newest(offline)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rows = rows_of(found)
    assert sorted(map(json.dumps, without_nan(lines_of(rows)))) == sorted(map(json.dumps, lines))
    (run,) = (record.run for record in found if record.HasField("run"))
    assert run.run_id == json.loads((out / "run.json").read_text())["id"]
    assert (run.display_name, run.project, run.run_group) == ("run", "mtlcore", "")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["training"]["epochs"] == 2
    assert config["origins"]["training.epochs"] == "config"
    results = {
        item.key: json.loads(item.value_json)
        for record in found if record.HasField("summary") for item in record.summary.update
    }  # fmt: skip
    assert results["final/val/depth/rmse"] == summary["final"]["val"]["depth"]["rmse"]
    assert results["outcome"] == "finished"
    (pictures,) = (row for row in rows if "report/predictions._type" in row)
    assert pictures["report/predictions._type"] == "image-file"
    assert pictures["report/curves._type"] == "html-file"
    (copy,) = offline.glob(f"offline-run-*/files/{pictures['report/predictions.path']}")
    assert copy.read_bytes()[:8] == (out / "report/predictions.png").read_bytes()[:8]


def test_who_is_not_logged_in_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    out, display = tmp_path / "run", NotesDisplay()
    whole = {**TINY_RUN, "loggers": [{"name": "wandb", "mode": "online"}]}
    mtlcore.run(whole, out=str(out), display=display)
    assert json.loads((out / "run.json").read_text())["status"] == "finished"
    (note,) = (note for note in display.notes if note.startswith("loggers: wandb failed"))
    assert "nobody is logged in" in note and f"mtl log {out} --to wandb" in note


def test_a_server_that_is_down_holds_up_neither_a_run_nor_its_end(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from mtlcore.storage import Loggers, RunOutcome
from mtlcore.testing import told_lines, told_run
from mtlcore_wandb.logger import WeightsAndBiases

loggers = Loggers(print, "runs/x", patience=3)
loggers.add("wandb", lambda: WeightsAndBiases(mode="online"))
begun = time.time()
loggers.start(told_run(Path(sys.argv[1])))
loggers.record(told_lines(1))
assert time.time() < begun + 2
loggers.finish(RunOutcome(status="finished", summary={}))
print("the end at", time.time())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9",
             "WANDB_MODE": "online"},
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    ended = time.time()
    assert "mtl log runs/x --to wandb sends all of it later" in done.stdout
    assert ended - float(done.stdout.split("the end at ")[1]) < 20


def test_mtl_log_sends_a_run(tmp_path: Path, offline: Path, mtl: Callable[..., Any]) -> None:
    out = tmp_path / "run"
    mtlcore.run(TINY_RUN, out=str(out))
    assert not offline.exists()
    done = mtl("log", str(out), "--to", "wandb", "--set", "project=mine")
    assert done.exit_code == 0, done.output
    found = newest(offline)
    (run,) = (record.run for record in found if record.HasField("run"))
    assert run.project == "mine"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines_of(rows_of(found))) == len(lines)


def test_the_study_is_the_group(tmp_path: Path, offline: Path) -> None:
    logger = WeightsAndBiases()
    # wandb's process knows the other told runs, some of which never end.
    logger.start(attrs.evolve(told_run(tmp_path, group="a study"), id=uuid.uuid4().hex))
    logger.record(told_lines(1))
    logger.finish(RunOutcome(status="failed", reason="diverged"))
    found = newest(offline)
    (run,) = (record.run for record in found if record.HasField("run"))
    assert run.run_group == "a study"
    (end,) = (record.exit for record in found if record.HasField("exit"))
    assert end.exit_code == 1


def test_the_plugin_can_be_listed_and_explained_without_torch() -> None:
    assert_plugin_is_light("mtlcore_wandb.plugin")
    assert_plugin_is_whole("mtlcore_wandb.plugin")
