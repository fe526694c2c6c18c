"""What is read from the directories of runs and studies, finished or not, here or at a URL."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mtlcore.errors import MtlError, UsageError
from mtlcore.storage import (
    RunDirectory,
    changed_settings,
    flatten,
    open_run,
    stored_config,
    stored_study,
)

SUMMARY = {
    "final": {"val": {"depth": {"abs_error": None, "loss": 0.5}}},
    "best": {
        "epoch": None,
        "chosen_on": "val",
        "val": {"depth": {"abs_error": 0.25, "loss": None}},
    },
    "constants": {"global": {"depth": {"abs_error": None}}},
    "final_split": "val",
    "averaged_over": 1,
    "higher_is_better": {"depth": {"abs_error": False, "loss": False}},
    "parameters": {"total": 100},
    "epochs": 1,
    "steps": 2,
    "seconds": 3.0,
}
STUDY: dict[str, Any] = {
    "name": "Both", "baseline": "a", "delta_m": "mtan", "epoch": "last",
    "targets": ["depth.abs_error=0.5"], "notes": [], "threads": 2,
    "cells": [{"variant": "a", "seed": 3, "group": None, "location": "cells/a/seed-3",
               "status": "failed", "reason": "no more disk"}],
}  # fmt: skip


def record(step: int, value: float | None) -> dict[str, Any]:
    return {"step": step, "epoch": 1, "split": "val", "task": "depth", "metric": "loss",
            "value": value, "seconds": 1.0}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run."""
    place = tmp_path / "run"
    place.mkdir()
    (place / "config.toml").write_text(
        'method = "equal"\nseed = 3\ntasks = ["depth"]\n[data]\nname = "x"\n'
    )
    (place / "run.json").write_text(json.dumps({"status": "finished"}))
    lines = [json.dumps(record(step, value)) for step, value in ((1, 0.5), (2, None))]
    (place / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (place / "summary.json").write_text(json.dumps(SUMMARY))
    return place


def test_null_is_read_as_nan(run: Path) -> None:
    files = open_run(f"{run}/")
    assert files.location == str(run)
    assert files.summary is not None
    assert math.isnan(files.summary["final"]["val"]["depth"]["abs_error"])
    assert math.isnan(files.summary["best"]["val"]["depth"]["loss"])
    assert math.isnan(files.summary["constants"]["global"]["depth"]["abs_error"])
    assert files.summary["best"]["val"]["depth"]["abs_error"] == 0.25
    assert files.summary["best"]["epoch"] is None  # a place, not a measured value
    assert [line["step"] for line in files.records] == [1, 2]
    assert files.records[0]["value"] == 0.5
    assert math.isnan(files.records[1]["value"])
    assert files.pictures is None


def test_a_url_is_read_like_a_path(run: Path) -> None:
    fsspec.filesystem("memory").put(str(run), "/read/run", recursive=True)
    there, here = open_run("memory://read/run"), open_run(str(run))
    assert there.config == here.config
    assert there.provenance == here.provenance
    assert repr(there.summary) == repr(here.summary)
    assert repr(there.records) == repr(here.records)


def test_only_a_run_that_goes_on_may_lack_metrics_or_half_a_line(run: Path) -> None:
    file = run / "metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 3, "ep')
    with pytest.raises(MtlError, match=r"metrics\.jsonl: not JSON lines"):
        _ = open_run(str(run)).records
    file.unlink()
    with pytest.raises(MtlError, match=r"metrics\.jsonl: is missing"):
        _ = open_run(str(run)).records
    (run / "summary.json").unlink()
    assert open_run(str(run)).summary is None
    assert open_run(str(run)).records == ()
    file.write_text(json.dumps(record(1, 0.5)) + '\n{"step": 2, "ep')
    assert [line["step"] for line in open_run(str(run)).records] == [1]


def test_where_no_run_is(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere: is neither a run .* nor a study"):
        open_run(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"no-such-scheme://x/config\.toml: cannot be read"):
        stored_config("no-such-scheme://x")
    assert stored_config(str(tmp_path)) is None
    assert stored_study(str(run)) is None
    (run / "config.toml").write_text("= 1")
    with pytest.raises(MtlError, match=r"config\.toml: not TOML"):
        open_run(str(run))


def test_the_writer_reads_what_it_wrote(tmp_path: Path) -> None:
    directory = RunDirectory(str(tmp_path / "new"), resume=False)
    directory.open_metrics(0)
    directory.record([record(1, math.nan), record(2, 0.5)])
    first, second = directory.metrics()  # before anything was flushed or closed
    assert math.isnan(first["value"])
    assert second == record(2, 0.5)
    directory.write_json("run.json", {"value": math.inf})
    assert directory.read_json("run.json") == {"value": None}
    assert directory.read_json("summary.json") is None
    directory.close()


def test_a_study_names_the_places_of_its_cells(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(STUDY))
    study = stored_study(f"{tmp_path}/")
    assert study is not None
    assert (study.name, study.threads, study.targets) == ("Both", 2, ("depth.abs_error=0.5",))
    (cell,) = study.cells
    assert cell.location == f"{tmp_path}/cells/a/seed-3"
    assert (cell.seed, cell.status, cell.reason) == (3, "failed", "no more disk")


@pytest.mark.parametrize(("content", "message"), [("{", "not JSON"), ("{}", "has no 'name'")])
def test_a_damaged_study_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(MtlError, match=rf"study\.json: {message}"):
        stored_study(str(tmp_path))


def test_tables_are_flattened_in_order() -> None:
    tree = {"b": 1, "a": {"y": [{"z": 1}], "x": {"w": None}}, "empty": {}}
    assert list(flatten(tree).items()) == [("b", 1), ("a.y", [{"z": 1}]), ("a.x.w", None)]
    assert flatten({"x": 1}, "at") == {"at.x": 1}


def test_changed_settings_are_named_by_their_paths() -> None:
    before = {"seed": 0, "data": {"name": "rooms", "size": [4, 4]}, "losses": {}}
    after = {"seed": 1, "data": {"name": "rooms", "size": [4, 8], "train": 3}}
    assert changed_settings(before, after) == ["data.size", "data.train", "seed"]
    assert changed_settings(before, before) == []


def test_reading_needs_no_torch() -> None:
    code = "import sys, mtlcore.storage; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
