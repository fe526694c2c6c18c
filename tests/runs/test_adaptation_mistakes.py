"""Adaptations that are refused: the exit code, what the message names, files left as they were."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
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


CONFIG: dict[str, Any] = {
    "tasks": ["segmentation", "depth"],
    "data": {"train": 12, "val": 4, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    "balancer": {"name": "uncertainty"},
    "optimizer": {"name": "adamw", "lr": 0.01},
    "training": {"epochs": 2, "batch_size": 4, "threads": 1},
}


@pytest.fixture(scope="module", autouse=True)
def _fast() -> Iterator[None]:
    """Pictures take longer than these runs, and are tested elsewhere; plugins where named."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTL_PLUGINS", "")
        patch.setattr("mtlcore.runs.execution.write_report", lambda *_: [])
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapt")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    mtlcore.run(CONFIG, out=str(folder / "run"))
    return folder / "run"


@pytest.fixture(scope="module")
def adapt(mtl: Command) -> Command:
    def command(run: Path, out: Path, *arguments: str, tasks: str = "edges") -> Result:
        result = mtl("adapt", str(run), "--tasks", tasks, "--out", str(out), *arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result

    return command


def files(path: Path) -> dict[Path, tuple[bytes, int]]:
    return {
        file.relative_to(path): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in path.rglob("*")
        if file.is_file()
    }


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
     ["data: 'train_fraction' must be > 0: 0"]),
    ("a share of too much", nothing, ["--tasks", "edges", "--data-fraction", "1.5"], 2,
     ["data: 'train_fraction' must be <= 1: 1.5"]),
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
    name: str, spoil: Any, arguments: list[str], code: int, says: list[str],
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
def test_mistakes_in_the_table(initial: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(Plugins(allow=()), (), [Layer("test", {**CONFIG, "initial": initial})])


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


def test_tasks_that_the_run_has_not_learnt_must_be_named(run: Path, tmp_path: Path) -> None:
    tasks = ["segmentation", "depth", "edges"]
    config = {**CONFIG, "tasks": tasks, "initial": {"run": str(run)}}
    with pytest.raises(UsageError, match=r"has not learnt edges; let initial\.new name"):
        mtlcore.run(config, out=str(tmp_path / "out"))
