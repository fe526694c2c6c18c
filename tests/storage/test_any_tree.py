"""Files of any well-formed content are read, or refused with a message that names them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlcore.errors import MtlError
from mtlcore.results import as_markdown, read_kept
from mtlcore.storage import (
    RunFiles,
    load_checkpoint,
    save_checkpoint,
    stored_study,
    take_stop_request,
)

CONFIG = {
    "method": "equal", "seed": 3, "tasks": ["depth"], "data": {"name": "rooms"},
    "training": {"steps": 3},
}  # fmt: skip
TABLE = {"depth": {"abs_error": 0.5, "loss": None}}
TREES: dict[str, Any] = {
    "run.json": {
        "id": "7", "argv": ["mtl"], "plugins": {"standard": "1"}, "device": "cpu", "seed": 3,
        "status": "failed", "reason": "no disk", "origins": {"seed": "core"},
    },
    "summary.json": {
        "final": {"val": TABLE}, "averaged_over": 1, "final_split": "val",
        "best": {"epoch": 1, "chosen_on": "val", "val": TABLE},
        "constants": {"global": TABLE, "pixel": {}},
        "higher_is_better": {"depth": {"abs_error": False, "loss": False}},
        "units": {"depth": "m"}, "parameters": {"total": 3, "modules": {"heads": 1}},
        "epochs": 1, "steps": 3, "seconds": 1.5, "seconds_per_step": None, "peak_memory": 1e8,
        "skipped_steps": 0, "skipped_samples": [],
    },
    "metrics.jsonl": {
        "step": 1, "epoch": 1, "split": "val", "task": "depth", "metric": "loss", "value": 0.5,
        "seconds": 1.0,
    },
    "report/samples/index.json": {
        "samples": [{"key": "a", "pictures": {}, "scales": {"depth": [0.0, 1.0]}}],
        "tasks": {"depth": {"classes": {"road": "#804080"}, "unit": "m"}},
    },
    "study.json": {
        "name": "Both", "baseline": "a", "delta_m": "mtan", "epoch": "last", "targets": [],
        "notes": [], "threads": 2,
        "cells": [{"variant": "a", "seed": 3, "group": None, "location": "a", "status": "failed",
                   "reason": None}],
    },
    "stop.json": {"reason": "enough"},
    "values.json": {
        "format": 1, "title": "Both", "baseline": "a", "delta_m": "mtan", "epoch": "last",
        "targets": ["depth.abs_error=0.5"], "notes": [], "units": {"depth": "m"},
        "metrics": {"depth": {"abs_error": False}}, "search": None,
        "variants": [{"name": "a", "groups": None, "failed": [], "runs": [
            {"seed": 0, "method": "equal", "location": "a", "tasks": ["depth"],
             "last": {"depth": [0.5]}, "best": None, "best_epoch": 1, "chosen_on": "val",
             "averaged_over": 1, "parameters": 3, "seconds": 1.5, "seconds_per_step": None,
             "stalled_seconds": 0.0, "peak_memory": None,
             "curves": {"depth.abs_error": [[1, 1.0, 0.5]]}}]}],
    },
}  # fmt: skip
READERS: dict[str, Callable[[str], object]] = {
    "run.json": lambda place: RunFiles(place).provenance,
    "summary.json": lambda place: RunFiles(place).summary,
    "metrics.jsonl": lambda place: RunFiles(place).records,
    "report/samples/index.json": lambda place: RunFiles(place).pictures,
    "study.json": stored_study,
    "stop.json": take_stop_request,
    "values.json": lambda place: as_markdown(read_kept(f"{place}/values.json")),
}
DEPTHS = ["fast", pytest.param("deep", marks=pytest.mark.slow)]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", TREES)
def test_a_json_file_of_another_shape_is_told(
    tmp_path: Path, mutated: Any, name: str, depth: str
) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)

    @settings(settings.get_profile(depth))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        file.write_text(json.dumps(data.draw(mutated(TREES[name]))) + "\n")
        try:
            READERS[name](str(tmp_path))
        except MtlError as error:
            assert str(file) in str(error)

    file.write_text(json.dumps(TREES[name]) + "\n")
    assert READERS[name](str(tmp_path))  # as it is, it is read
    check()


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize(
    "content",
    [b"", b"[", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b'"\\ud800"', b"NaN", b"{}{}", b"\x00"],
    ids=["empty", "half", "no UTF-8", "deep", "digits", "half a letter", "nan", "two", "zero"],
)
def test_what_is_no_tree_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "summary.json").write_text(json.dumps(TREES["summary.json"]))
    file.write_bytes(content)
    if (name, content) == ("metrics.jsonl", b""):
        assert not list(READERS[name](str(tmp_path)))  # a run without lines
        return
    with pytest.raises(MtlError, match=str(file)):
        READERS[name](str(tmp_path))


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_stored_configuration_of_another_shape_is_told(
    tmp_path: Path, mutated: Any, depth: str
) -> None:
    @settings(settings.get_profile(depth))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        try:
            text = tomli_w.dumps(data.draw(mutated(CONFIG)))
            (tmp_path / "config.toml").write_text(text)
        except (TypeError, AttributeError, ValueError):  # TOML has no such value
            return
        try:
            _ = RunFiles(str(tmp_path)).config
        except MtlError as error:
            assert "config.toml" in str(error)

    check()


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_checkpoint_of_another_shape_is_told(tmp_path: Path, mutated: Any, depth: str) -> None:
    from safetensors.torch import save_file

    tree = {
        "learner": {"a": {"$tensor": "a"}, "b": {"$tuple": [1, {"$dict": [[1, 2]]}]}},
        "progress": {"step": 1},
    }
    file = tmp_path / "last.safetensors"

    @settings(settings.get_profile(depth))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        header = {"format": "mtlcore-1", "tree": json.dumps(data.draw(mutated(tree)))}
        save_file({"a": torch.zeros(2)}, file, header)
        try:
            assert isinstance(load_checkpoint(file), dict)
        except MtlError as error:
            assert str(file) in str(error)

    check()
    save_checkpoint(file, {"x": torch.ones(1)})
    assert load_checkpoint(file)["x"] == 1
