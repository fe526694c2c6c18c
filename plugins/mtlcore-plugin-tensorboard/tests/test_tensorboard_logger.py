"""The logger against TensorBoard's own reader."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mtlcore
from mtlcore.display import Display
from mtlcore.errors import Interrupted
from mtlcore.storage import RunOutcome, tag_of
from mtlcore.testing import (
    TINY_RUN,
    LoggerContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
    told_lines,
    told_run,
)
from mtlcore_tensorboard.logger import TensorBoard


class StopAfter(Display):
    """Stops the run after its first epoch, as Ctrl-C does."""

    def _begin(self, title: str) -> None: ...

    def note(self, message: str) -> None: ...

    def epoch(self, epoch: int, epochs: int, losses: Any, metrics: Any) -> None:
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    def stop(self) -> None: ...


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def scalars(events: EventAccumulator) -> dict[tuple[str, int], list[float]]:
    """Tag and step -> all values there."""
    values: dict[tuple[str, int], list[float]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            values.setdefault((tag, event.step), []).append(event.value)
    return values


def text(events: EventAccumulator, tag: str) -> str:
    (event,) = events.Tensors(tag)
    return event.tensor_proto.string_val[0].decode()


class TestContract(LoggerContract):
    def make(self, folder: Path) -> TensorBoard:
        return TensorBoard()

    def arrived(self, folder: Path) -> list[dict[str, Any]]:
        events = read(folder / "tensorboard")
        epochs = {event.step: int(event.value) for event in events.Scalars("epoch")}
        tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("train/", "val/"))]
        return [
            line_of(tag, event, epochs[event.step]) for tag in tags for event in events.Scalars(tag)
        ]


def line_of(tag: str, event: Any, epoch: int) -> dict[str, Any]:
    split, *task, metric = tag.split("/")
    return {
        "step": event.step,
        "epoch": epoch,
        "split": split,
        "task": task[0] if task else None,
        "metric": metric,
        "value": float(f"{event.value:.6g}"),  # in single precision there
        "seconds": round(event.wall_time - 1.7e9, 3),
    }


def test_everything_of_a_run_is_there(tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = mtlcore.run(TINY_RUN, plugins=["tensorboard"], out=str(out))
    assert summary["method"] == "default"  # a logger is no part of a method
    events = read(out / "tensorboard")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = scalars(events)
    for line in lines:
        assert found[tag_of(line), line["step"]] == [pytest.approx(line["value"], nan_ok=True)]
    config = text(events, "config")
    assert "epochs = 2  # config" in config and 'name = "segnet"  # core' in config
    assert json.loads(text(events, "summary")) == json.loads((out / "summary.json").read_text())
    final = summary["final"]["val"]["depth"]["rmse"]
    assert found["final/val/depth/rmse", 4] == [pytest.approx(final)]
    assert text(events, "outcome") == "finished"
    (picture,) = events.Images("report/predictions")
    assert picture.encoded_image_string == (out / "report/predictions.png").read_bytes()
    assert {"_hparams_/session_start_info", "_hparams_/session_end_info"} <= {
        *events.PluginTagToContent("hparams")
    }


def test_a_run_that_goes_on_has_every_value_once(tmp_path: Path, interruptible: None) -> None:
    out = str(tmp_path / "run")
    with pytest.raises(Interrupted):
        mtlcore.run(TINY_RUN, plugins=["tensorboard"], out=out, display=StopAfter())
    mtlcore.run(TINY_RUN, plugins=["tensorboard"], out=out, resume=True)
    found = scalars(read(tmp_path / "run" / "tensorboard"))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {(tag_of(line), line["step"]) for line in lines} <= {*found}
    assert {len(values) for values in found.values()} == {1}


def test_each_run_of_a_study_has_a_folder_in_that_of_the_study(tmp_path: Path) -> None:
    logger = TensorBoard(folder=str(tmp_path / "boards"))
    logger.start(told_run(tmp_path, group="a/study"))
    (file,) = tmp_path.rglob("events.*")
    assert file.parent == tmp_path / "boards" / "a-study" / "default-1-01234567"


def test_a_logger_that_comes_late_writes_what_was_before(tmp_path: Path) -> None:
    lines = told_lines(1)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    logger = TensorBoard()
    logger.start(told_run(tmp_path, resumed=True, step=1))
    logger.finish(RunOutcome(status="interrupted", reason="enough"))
    events = read(tmp_path / "tensorboard")
    assert {tag_of(line) for line in lines} <= {*events.Tags()["scalars"]}
    assert text(events, "outcome") == "interrupted: enough"


def test_mtl_log_writes_a_run_without_a_logger(tmp_path: Path, mtl: Callable[..., Any]) -> None:
    out = str(tmp_path / "run")
    mtlcore.run(TINY_RUN, out=out)
    for _ in range(2):
        done = mtl("log", out, "--to", "tensorboard", "--set", f"folder={tmp_path / 'boards'}")
        assert done.exit_code == 0, done.output
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert f"{out}: {len(lines)} lines sent to tensorboard" in done.stdout
    (folder,) = (tmp_path / "boards").iterdir()
    found = scalars(read(folder))
    assert {len(values) for values in found.values()} == {1}
    assert "final/val/depth/rmse" in {tag for tag, _ in found}


def test_the_plugin_can_be_listed_and_explained_without_torch() -> None:
    assert_plugin_is_light("mtlcore_tensorboard.plugin")
    assert_plugin_is_whole("mtlcore_tensorboard.plugin")
