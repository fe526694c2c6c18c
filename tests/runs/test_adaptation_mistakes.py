"""Adaptations that are refused: the exit code, what the message names, files left as they were."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import mtlcore
from mtlcore.config import Layer, resolve
from mtlcore.errors import UsageError
from mtlcore.plugins import Plugins
from mtlcore.storage import load_checkpoint, save_checkpoint

Command = Callable[..., Result]
Files = Callable[[Path], dict[Path, tuple[bytes, int]]]
pytestmark = pytest.mark.usefixtures("without_pictures")


def no_checkpoint(run: Path) -> None:
    (run / "checkpoints/best.safetensors").unlink()


def cut(run: Path) -> None:
    file = run / "checkpoints/best.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def no_weights(run: Path) -> None:
    save_checkpoint(run / "checkpoints/best.safetensors", {"other": 1})


def nothing(run: Path) -> None: ...


MISTAKES = [
    ("a task that the data does not have", nothing, ["--tasks", "edgs"], 2,
     ["'rooms' declares no task 'edgs'", "did you mean 'edges'"]),
    ("a task that the run has", nothing, ["--tasks", "edges,depth"], 2,
     ["--tasks depth", "has learnt segmentation, depth", "new to it"]),
    ("no task", nothing, ["--tasks", " ,"], 2, ["--tasks", "at least one"]),
    ("a run without a checkpoint", no_checkpoint, ["--tasks", "edges"], 1,
     ["run/checkpoints/best.safetensors", "no such checkpoint"]),
    ("a checkpoint cut short", cut, ["--tasks", "edges"], 1,
     ["run/checkpoints/best.safetensors", "not a readable checkpoint"]),
    ("a checkpoint of something else", no_weights, ["--tasks", "edges"], 1,
     ["run/checkpoints/best.safetensors", "holds no weights"]),
    ("no run", lambda run: (run / "config.toml").unlink(), ["--tasks", "edges"], 2,
     ["run: no run there"]),
    ("another backbone", nothing, ["--tasks", "edges", "--set=model.backbone.name=unet"], 2,
     ["initial.run", "run/checkpoints/best.safetensors has no model.backbone", "another model"]),
    ("a smaller backbone", nothing, ["--tasks", "edges", "--set=model.backbone.width=0.02"], 2,
     ["model.backbone.encoder", "of shape (2, 3, 3, 3) where this run needs (1, 3, 3, 3)"]),
    ("another head", nothing, ["--tasks", "edges", "--set=model.heads.depth.name=deeplab"], 2,
     ["has no model.heads.task_depth.", "keep its backbone and heads"]),
    ("the run itself", nothing, ["--tasks", "edges", "--out", "run", "--resume"], 2,
     ["--out run", "the trained run itself"]),
    ("a place that is taken", nothing, ["--tasks", "edges", "--out", "taken"], 2,
     ["taken: is not empty"]),
    ("a share of nothing", nothing, ["--tasks", "edges", "--data-fraction", "0"], 2,
     ["data.train_fraction: expected", "> 0", "got 0.0"]),
    ("a share of too much", nothing, ["--tasks", "edges", "--data-fraction", "1.5"], 2,
     ["data.train_fraction: expected", "<= 1", "got 1.5"]),
    ("a target in other words", nothing, ["--tasks", "edges", "--target", "edges"], 2,
     ["target 'edges'", "task.metric=value"]),
    ("a target of no task", nothing, ["--tasks", "edges", "--target", "edgs.f1=1"], 2,
     ["no task 'edgs' learns; did you mean 'edges'"]),
    ("a target of a task that does not learn", nothing,
     ["--tasks", "edges", "--train", "new", "--target", "depth.abs_error=1"], 2,
     ["no task 'depth' learns", "these do: edges"]),
    ("a target of no metric", nothing, ["--tasks", "edges", "--target", "edges.f2=1"], 2,
     ["edges has no metric 'f2' (it has: f1, loss)"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "arguments", "code", "says"), MISTAKES)
def test_mistakes(
    mtl: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, spoil: Any, arguments: list[str], code: int, says: list[str], files: Files,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("mine")
    spoil(tmp_path / "run")
    before = files(tmp_path)
    out = [] if "--out" in arguments else ["--out", "out"]
    result = mtl("adapt", "run", *arguments, *out)
    assert result.exit_code == code, (result.output, result.exception)
    assert result.stderr.startswith("mtl: ")
    assert "Traceback" not in result.stderr
    for fragment in says:
        assert fragment in result.stderr, result.stderr
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        ({"rum": "x"}, "initial.rum: unknown.*did you mean 'run'"),
        ({"run": "x", "checkpoint": "first"}, "initial.checkpoint"),
        ({"run": "x", "new": ["edges"]}, "initial.new: the run has no task 'edges'"),
        ({"run": "x", "train": "heads"}, "initial.train: 'heads' trains the tasks"),
    ],
)
def test_mistakes_in_the_table(
    initial: dict[str, Any], message: str, small: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(Plugins(allow=()), (), [Layer("test", {**small, "initial": initial})])


def test_a_head_of_another_shape(mtl: Command, adapt: Command, run: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(run, source)
    state = load_checkpoint(source / "checkpoints/best.safetensors")
    name = "model.heads.task_segmentation.output.weight"
    state["learner"][name] = state["learner"][name][:5]
    save_checkpoint(source / "checkpoints/best.safetensors", state)
    result = mtl("adapt", str(source), "--tasks", "edges", "--out", str(tmp_path / "out"))
    assert result.exit_code == 2, result.output
    assert f"has {name} of shape (5, 2, 1, 1) where this run needs (" in result.stderr
    assert "let initial.new name the task" in result.stderr
    # As it says: that task starts anew as well.
    again = ["--set", "initial.new=['segmentation', 'edges']", "--set=training.epochs=1"]
    adapt(source, tmp_path / "out", *again)


def test_tasks_that_the_run_has_not_learnt_must_be_named(
    run: Path, tmp_path: Path, small: dict[str, Any]
) -> None:
    tasks = ["segmentation", "depth", "edges"]
    config = {**small, "tasks": tasks, "initial": {"run": str(run)}}
    with pytest.raises(UsageError, match=r"has not learnt edges; let initial\.new name"):
        mtlcore.run(config, out=str(tmp_path / "out"))
