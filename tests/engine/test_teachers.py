"""Teachers from trained runs, and the averaged copy of the model."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.config import Layer, RunConfig, resolve
from mtlcore.display import SilentDisplay
from mtlcore.engine import Session, Training, check, restore
from mtlcore.errors import ConfigError, Interrupted, UsageError
from mtlcore.plugins import Plugins
from mtlcore.runs import load_run
from mtlcore.storage import RunDirectory, load_checkpoint, model_of, save_checkpoint

PLUGIN = '''
import os

from mtlcore import CrossTaskLossSpec, hookimpl


@hookimpl
def mtl_losses():
    from torch.nn import functional as F

    from mtlcore.losses import CrossTaskLoss

    class Imitate(CrossTaskLoss):
        """The squared difference from a teacher's predictions.

        Args:
            of: names of the teachers.
        """

        def __init__(self, tasks, features, *, of: tuple[str, ...]):
            super().__init__()
            self.needs_teachers = of

        def needs(self, batch, tasks):
            return tasks

        def forward(self, batch, features, predictions):
            return {
                name: sum(
                    F.mse_loss(predictions[task], raw)
                    for task, raw in teacher.predict(
                        batch.inputs, [task for task in teacher.tasks if task in predictions]
                    ).items()
                )
                for name, teacher in self.teachers.items()
            }

        def after_step(self, context):
            if str(context.step) == os.environ.get("MTL_TEST_STOP"):
                raise KeyboardInterrupt

    yield CrossTaskLossSpec(name="imitate", target=Imitate)
'''
TINY: dict[str, Any] = {
    "tasks": ["segmentation", "depth"],
    "data": {"train": 6, "val": 3, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    "training": {"epochs": 2, "batch_size": 3, "threads": 1},
}


def merged(tree: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    for key, value in other.items():
        inner = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = merged(tree[key], value) if inner else value
    return tree


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin, and a run that has learnt depth alone."""
    place = tmp_path_factory.mktemp("teachers")
    (place / "imitate.py").write_text(PLUGIN)
    mtlcore.run({**TINY, "tasks": ["depth"], "seed": 5}, out=str(place / "depth"))
    return place


def settings(place: Path, of: list[str], **more: Any) -> dict[str, Any]:
    base = {"plugins": [str(place / "imitate.py")], "cross_task": [{"name": "imitate", "of": of}]}
    return merged(merged(TINY, base), more)


def resolved(values: dict[str, Any]) -> RunConfig:
    return resolve(Plugins.from_environment(), (), [Layer("test", values)])


def session_of(values: dict[str, Any], place: Path) -> Session:
    config = resolved(values)
    torch.set_num_threads(1)
    return Session(config, RunDirectory(str(place), resume=True), SilentDisplay())


def distilling(place: Path, **more: Any) -> dict[str, Any]:
    return settings(place, ["depth"], teachers={"depth": str(place / "depth")}, **more)


# Teachers


def test_a_teacher_predicts_as_its_run_does(place: Path, tmp_path: Path) -> None:
    session = session_of(distilling(place), tmp_path / "run")
    check(session)
    (loss,) = session.learner.cross_task_losses
    teacher = loss.teachers["depth"]
    assert list(teacher.tasks) == ["depth"]
    trained = load_run(Plugins.from_environment(), str(place / "depth"), "best")
    inputs = torch.rand(2, 3, 32, 32)
    expected = trained.learner.predict(inputs, ["depth"])["depth"]
    found = teacher.predict(inputs.requires_grad_(), ["depth"])["depth"]
    assert torch.equal(found, expected)
    assert not found.requires_grad
    (shared, *_) = teacher.features(inputs, ["depth"]).shared
    assert not shared.requires_grad


def test_a_teacher_is_in_no_checkpoint_and_no_count(place: Path, tmp_path: Path) -> None:
    alone = session_of(settings(place, []), tmp_path / "alone")
    with_teacher = session_of(distilling(place), tmp_path / "with")
    pairs = zip(
        alone.learner.state_dict().items(), with_teacher.learner.state_dict().items(), strict=True
    )
    for (name, value), (other_name, other) in pairs:
        assert name == other_name
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other), "making a teacher draws from the learner's stream"
    summary = mtlcore.run(distilling(place), out=str(tmp_path / "run"))
    plain = mtlcore.run(settings(place, []), out=str(tmp_path / "plain"))
    assert summary["parameters"] == plain["parameters"]
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert list(state["teachers"]) == ["depth"]
    assert len(state["teachers"]["depth"]) == 64  # a digest and nothing else
    plain_state = load_checkpoint(tmp_path / "plain" / "checkpoints" / "last.safetensors")
    assert state["learner"].keys() == plain_state["learner"].keys()
    assert any(
        not torch.equal(value, plain_state["learner"][name])
        for name, value in state["learner"].items()
        if isinstance(value, torch.Tensor)
    ), "the teacher teaches nothing"


def test_a_run_is_used_without_its_teachers(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "depth", tmp_path / "gone")
    values = settings(place, ["depth"], teachers={"depth": str(tmp_path / "gone")})
    mtlcore.run(values, out=str(tmp_path / "run"))
    shutil.rmtree(tmp_path / "gone")
    plugins = Plugins.from_environment()
    plugins.trust_runs()
    trained = load_run(plugins, str(tmp_path / "run"), "last")
    assert trained.learner.predict(torch.rand(1, 3, 32, 32), ["depth"])


def test_the_student_of_a_student(place: Path, tmp_path: Path) -> None:
    mtlcore.run(distilling(place), out=str(tmp_path / "first"))
    values = settings(place, ["both"], teachers={"both": str(tmp_path / "first")})
    (loss,) = session_of(values, tmp_path / "second").learner.cross_task_losses
    assert list(loss.teachers["both"].tasks) == ["segmentation", "depth"]


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_teacher_may_be_the_last_weights(place: Path, tmp_path: Path, checkpoint: str) -> None:
    shutil.copytree(place / "depth", tmp_path / "depth")
    file = tmp_path / "depth" / "checkpoints" / "last.safetensors"
    state = load_checkpoint(file)
    name = next(n for n in state["learner"] if n.endswith("weight"))
    state["learner"][name] = state["learner"][name] + 1
    save_checkpoint(file, state)
    teacher = {"run": str(tmp_path / "depth"), "checkpoint": checkpoint}
    values = settings(place, ["depth"], teachers={"depth": teacher})
    (loss,) = session_of(values, tmp_path / "run").learner.cross_task_losses
    trained = load_run(Plugins.from_environment(), teacher["run"], "last")
    inputs = torch.rand(2, 3, 32, 32)
    found = loss.teachers["depth"].predict(inputs, ["depth"])["depth"]
    expected = trained.learner.predict(inputs, ["depth"])["depth"]
    assert torch.equal(found, expected) is (checkpoint == "last")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"checkpoint": "last"}, r"teachers\.depth\.run: is required"),
        ({"run": "x", "checkpoint": "lst"}, r"teachers\.depth\.checkpoint: .*did you mean 'last'"),
        ({"run": "x", "epoch": 3}, r"teachers\.depth\.epoch: unknown setting"),
    ],
)
def test_the_table_of_a_teacher_is_checked(place: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved({**TINY, "teachers": {"depth": place}})


@pytest.mark.parametrize("task", ["normals", "segmentation"])
def test_a_teacher_of_other_tasks_is_refused_by_name(place: Path, task: str) -> None:
    with pytest.raises(ConfigError, match=rf"teachers\.depth: .*depth has learnt depth.*{task}"):
        resolved({**distilling(place), "tasks": [task]})


def test_a_teacher_of_another_scale_or_class_is_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "depth", tmp_path / "depth")
    file = tmp_path / "depth" / "config.toml"
    file.write_text(file.read_text().replace('    "depth",', '    "depht",', 1))
    values = settings(place, ["depth"], teachers={"depth": str(tmp_path / "depth")})
    with pytest.raises(ConfigError, match=r"teachers\.depth: .*'depht'"):
        resolved(values)
    for wrong, reason in ((3, "expected a run's directory"), ("nowhere", "no run there")):
        with pytest.raises(ConfigError, match=rf"teachers\.depth: .*{reason}"):
            resolved(settings(place, ["depth"], teachers={"depth": wrong}))
    with pytest.raises(ConfigError, match=r"teachers\.ema: .*training\.ema keeps"):
        resolved(settings(place, [], teachers={"ema": str(place / "depth")}))


def test_tasks_must_agree_in_everything(place: Path, monkeypatch) -> None:
    from mtlcore.config.teacher_table import _unfit
    from mtlcore.tasks import Task

    one = Task(name="scene", kind="segmentation", channels=3, class_names=("a", "b", "c"))
    other = Task(name="scene", kind="segmentation", channels=3, class_names=("a", "c", "b"))
    assert _unfit([one], [one]) == []
    (clause,) = _unfit([other], [one])
    assert "class_names ('a', 'c', 'b'), not ('a', 'b', 'c')" in clause


def test_who_asks_for_no_teacher_and_for_none_there_is(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Imitate asks for a teacher 'depth'.*teachers\.depth ="):
        session_of(settings(place, ["depth"]), tmp_path / "one")
    with pytest.raises(UsageError, match=r"asks for a teacher 'ema'.*set training\.ema"):
        session_of(settings(place, ["ema"]), tmp_path / "two")
    values = settings(place, [], teachers={"depth": str(place / "depth")})
    assert session_of(values, tmp_path / "three").teachers.unused == ["depth"]


def interrupted(values: dict[str, Any], out: Path, monkeypatch, **moved: Any) -> None:
    """Stop in the second epoch and go on."""
    monkeypatch.setenv("MTL_TEST_STOP", "3")
    with pytest.raises(Interrupted):
        mtlcore.run(values, out=str(out))
    monkeypatch.delenv("MTL_TEST_STOP")
    mtlcore.run(merged(values, moved), out=str(out), resume=True)


def assert_same_checkpoints(one: Path, other: Path) -> None:
    for file in ("last", "best"):
        states = [
            load_checkpoint(run / "checkpoints" / f"{file}.safetensors") for run in (one, other)
        ]
        for part in ("learner", "average", "teachers", "optimizer"):
            pair = [mtlcore.storage.flatten(state.get(part, {})) for state in states]
            assert pair[0].keys() == pair[1].keys(), part
            for name, value in pair[0].items():
                same = (
                    torch.equal(value, pair[1][name])
                    if isinstance(value, torch.Tensor)
                    else value == pair[1][name]
                )
                assert same, f"{file}: {part}.{name}"


def test_resuming_is_exact_wherever_the_teacher_is_now(
    place: Path, tmp_path: Path, monkeypatch
) -> None:
    training = {"ema": 0.9, "evaluate_ema": True}
    values = settings(
        place, ["depth", "ema"], teachers={"depth": str(place / "depth")}, training=training
    )
    mtlcore.run(values, out=str(tmp_path / "whole"))
    shutil.copytree(place / "depth", tmp_path / "moved")
    interrupted(
        values, tmp_path / "parts", monkeypatch, teachers={"depth": str(tmp_path / "moved")}
    )
    assert_same_checkpoints(tmp_path / "whole", tmp_path / "parts")


def test_going_on_with_another_teacher_is_refused(place: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(place / "depth", tmp_path / "depth")
    values = settings(place, ["depth"], teachers={"depth": str(tmp_path / "depth")})
    monkeypatch.setenv("MTL_TEST_STOP", "3")
    with pytest.raises(Interrupted):
        mtlcore.run(values, out=str(tmp_path / "run"))
    file = tmp_path / "depth" / "checkpoints" / "best.safetensors"
    state = load_checkpoint(file)
    name = next(n for n in state["learner"] if n.endswith("weight"))
    state["learner"][name] = state["learner"][name] + 1e-3
    save_checkpoint(file, state)
    with pytest.raises(UsageError, match=r"teachers\.depth: .* other weights than the teacher"):
        mtlcore.run(values, out=str(tmp_path / "run"), resume=True)
    with pytest.raises(UsageError, match=r"teachers\.more: the run has begun with depth"):
        mtlcore.run(
            merged(values, {"teachers": {"more": str(place / "depth")}}),
            out=str(tmp_path / "run"), resume=True,
        )  # fmt: skip


LABELLER = """
import attrs
import torch

from mtlcore import DatasetSpec, hookimpl


@hookimpl
def mtl_datasets():
    from mtlcore.datasets.rooms import Rooms

    class Labelled(Rooms):
        def __init__(self, root, split, *, samples: int, size: tuple[int, int] = (32, 32)):
            super().__init__(root, split, samples=samples, size=size)
            self.needs_teachers = ("depth",) if split == "train" else ()

        def __getitem__(self, index):
            sample = super().__getitem__(index)
            for teacher in self.teachers.values():
                (depth,) = teacher.predict(sample.inputs[None], ["depth"])["depth"]
                sample = attrs.evolve(
                    sample, targets={**sample.targets, "depth": depth},
                    valid={**sample.valid, "depth": depth[0] > 0},
                )
            return sample

    yield DatasetSpec(name="labelled", target=Labelled, summary="Depth by a teacher.")
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_may_ask_for_teachers(place: Path, tmp_path: Path, workers: int) -> None:
    (tmp_path / "labelled.py").write_text(LABELLER)
    values = merged(TINY, {"plugins": [str(tmp_path / "labelled.py")],
                           "data": {"name": "labelled", "workers": workers}})  # fmt: skip
    with pytest.raises(UsageError, match=r"data: it asks for a teacher 'depth'.*teachers\.depth"):
        session_of(values, tmp_path / "none")
    values["teachers"] = {"depth": str(place / "depth")}
    session = session_of(values, tmp_path / "run")
    trained = load_run(Plugins.from_environment(), str(place / "depth"), "best")
    (loaded, *_) = session.loader.plans(Training(session).plan_block()[:1])
    (batch,) = loaded.batches
    expected = trained.learner.predict(batch.inputs, ["depth"])["depth"]
    valid = batch.valid["depth"].unsqueeze(1)
    assert torch.equal(valid, expected > 0)
    torch.testing.assert_close(batch.targets["depth"][valid], expected[valid])
    assert session.teachers.unused == []


# The averaged copy


def test_the_average_follows_steps_that_were_taken(place: Path, tmp_path: Path) -> None:
    session = session_of(settings(place, [], training={"ema": 0.75}), tmp_path / "run")
    training = Training(session)
    session.directory.open_metrics(0)
    assert session.average is not None
    session.average.restart()
    model, average = session.learner.model, session.average.model
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    plans = training.plan_block()
    session.learner.train()
    for number, loaded in enumerate(session.loader.plans(plans)):
        if number == 1:
            loaded.batches[0].inputs[0] = float("nan")
        report = training.step(loaded)
        training.finish_step(report)
        assert (report.skipped is not None) == (number == 1)
        if report.skipped is None:
            for name, p in model.named_parameters():
                expected[name] = 0.75 * expected[name] + 0.25 * p.detach()
        for name, p in average.named_parameters():
            torch.testing.assert_close(p, expected[name])
        for one, other in zip(model.buffers(), average.buffers(), strict=True):
            assert torch.equal(one, other)
    session.directory.close()
    assert not average.training
    assert not any(p.requires_grad for p in average.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_a_run_is_evaluated_by_its_average(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    values = settings(place, [], training={"ema": 0.5, "evaluate_ema": True, "evaluate_every": 1})
    summary = mtlcore.run(values, out=str(out))
    state = load_checkpoint(out / "checkpoints" / "last.safetensors")
    raw = model_of(state["learner"])
    assert raw.keys() == state["average"].keys()
    assert any(
        not torch.equal(value, raw[name])
        for name, value in state["average"].items()
        if isinstance(value, torch.Tensor)
    )
    plugins = Plugins.from_environment()
    plugins.trust_runs()
    from mtlcore.runs import evaluate_run

    for which in ("last", "best"):
        figures, _ = evaluate_run(load_run(plugins, str(out), which), "val")
        expected = summary["final" if which == "last" else "best"]["val"]
        for task, metrics in expected.items():
            assert figures[task] == pytest.approx(metrics)
    learner = load_run(plugins, str(out), "last").learner
    for name, value in learner.model.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, state["average"][name])


def test_the_average_is_of_the_first_weights(place: Path, tmp_path: Path) -> None:
    mtlcore.run(TINY, out=str(tmp_path / "first"))
    values = settings(place, ["ema"], initial={"run": str(tmp_path / "first")},
                      training={"ema": 0.999, "steps": 1})  # fmt: skip
    mtlcore.run(values, out=str(tmp_path / "second"))
    state = load_checkpoint(tmp_path / "second" / "checkpoints" / "last.safetensors")
    first = load_checkpoint(tmp_path / "first" / "checkpoints" / "best.safetensors")["learner"]
    weights = {n: v for n, v in model_of(first).items() if n.endswith("weight")}
    for name, value in weights.items():
        torch.testing.assert_close(state["average"][name], value, rtol=0, atol=1e-4)


def test_evaluating_an_average_that_is_not_kept_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training: evaluate_ema .* set ema too"):
        resolved(merged(TINY, {"training": {"evaluate_ema": True}}))
    for wrong in (0.0, 1.0, -0.1):
        with pytest.raises(ConfigError, match="ema"):
            resolved(merged(TINY, {"training": {"ema": wrong}}))


def test_a_checkpoint_without_the_average_is_refused(place: Path, tmp_path: Path) -> None:
    mtlcore.run(settings(place, []), out=str(tmp_path / "run"))
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.safetensors")
    session = session_of(settings(place, [], training={"ema": 0.9}), tmp_path / "other")
    with pytest.raises(mtlcore.errors.MtlError, match="holds no average"):
        restore(session, state)
