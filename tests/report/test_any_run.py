"""A page or a comparison of runs with anything in their files: a result, or a message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

CONFIG = {
    "method": "equal", "seed": 3, "tasks": ["depth"], "data": {"name": "rooms"},
    "training": {"steps": 3}, "optimizer": {"name": "adam", "lr": 0.1},
    "model": {"heads": {"depth": {"name": "conv"}}},
}  # fmt: skip
TABLE = {"depth": {"abs_error": 0.5, "loss": None}}
SUMMARY = {
    "final": {"val": TABLE}, "averaged_over": 1, "final_split": "val",
    "best": {"epoch": 1, "chosen_on": "val", "val": TABLE},
    "constants": {"global": TABLE, "pixel": TABLE},
    "higher_is_better": {"depth": {"abs_error": False, "loss": False}},
    "units": {"depth": "m"}, "parameters": {"total": 3, "modules": {"heads": 1}},
    "epochs": 1, "steps": 3, "seconds": 1.5, "seconds_per_step": None, "peak_memory": 1e8,
    "skipped_steps": 0, "skipped_samples": [],
}  # fmt: skip
LINE = {
    "step": 1, "epoch": 1, "split": "val", "task": "depth", "metric": "abs_error", "value": 0.5,
    "seconds": 1.0,
}  # fmt: skip
FILES: dict[str, Any] = {
    "config.toml": CONFIG,
    "summary.json": SUMMARY,
    "metrics.jsonl": [LINE, {**LINE, "step": 2}, {**LINE, "split": "train", "metric": "weight"}],
    "run.json": {"status": "finished", "argv": ["mtl"], "plugins": {}, "origins": {"seed": "core"}},
}
COMMANDS = (
    ("report", "{one}"),
    ("compare", "{one}", "{two}"),
    ("compare", "{one}", "{two}", "--target", "depth.abs_error=0.6", "--json"),
    ("report", "{one}", "{two}"),
)


def write(place: Path, files: dict[str, Any]) -> None:
    place.mkdir(exist_ok=True)
    for name, tree in files.items():
        if name == "config.toml":
            text = tomli_w.dumps(tree)
        elif name == "metrics.jsonl" and isinstance(tree, list):
            text = "".join(json.dumps(line) + "\n" for line in tree)
        else:
            text = json.dumps(tree)
        (place / name).write_text(text)


@pytest.mark.parametrize("depth", ["fast", pytest.param("deep", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_any_run_is_shown_or_told(
    tmp_path: Path, mtl: Callable[..., Result], mutated: Any, name: str, depth: str
) -> None:
    write(tmp_path / "two", FILES)
    place = {"one": str(tmp_path / "one"), "two": str(tmp_path / "two")}

    @settings(settings.get_profile(depth))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        shutil.rmtree(tmp_path / "one", ignore_errors=True)
        try:
            write(tmp_path / "one", {**FILES, name: data.draw(mutated(FILES[name]))})
        except (TypeError, AttributeError, ValueError):  # TOML has no such value
            return
        command = [word.format(**place) for word in data.draw(st.sampled_from(COMMANDS))]
        if command[0] == "report":
            command.append(f"--out={tmp_path / 'page.html'}")
        result = mtl(*command)
        assert result.exit_code in (0, 1, 2), (command, result.output)
        assert result.exception is None or isinstance(result.exception, SystemExit), command

    check()
