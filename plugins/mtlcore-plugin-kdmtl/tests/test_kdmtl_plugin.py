"""The loss against its equation, what it refuses, and runs that are taught."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

import mtlcore
from mtlcore.config import resolve, set_layer
from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo, Features
from mtlcore.plugins import Plugins
from mtlcore.runs import load_run
from mtlcore.tasks import Task
from mtlcore.teachers import Teacher
from mtlcore.testing import (
    TINY_TASKS,
    CrossTaskLossContract,
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
    assert_settings_are_checked,
    tiny_batch,
    tiny_learner,
)
from mtlcore_kdmtl.adapters import KDMTL

NAMES = [task.name for task in TINY_TASKS]
# Of tiny_learner's backbone: a shared map and one of each task.
INFO = FeatureInfo((6, 5), (2, 2))
SMALL = ("data.train=4", "data.val=2", "data.size=32x32", "data.workers=0", "device=cpu",
         "model.backbone.width=0.03125", "training.batch_size=2")  # fmt: skip


class TestKDMTL(CrossTaskLossContract):
    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> KDMTL:
        return KDMTL(tasks, features)


class TestKDMTLOfTwoTasks(CrossTaskLossContract):
    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> KDMTL:
        return KDMTL(tasks, features, weights={"segmentation": 0, "depth": 2.5}, lr=0.1)


def trained(folder: Path, *tasks: str) -> dict[str, str]:
    """Train a network per task for an epoch; return where they are."""
    places = {}
    for task in tasks:
        changes = [f"tasks=['{task}']", "training.epochs=1", "training.steps=2", *SMALL]
        config = resolve(Plugins.from_environment(), ["kdmtl-teacher"], [set_layer(changes)])
        places[task] = str(folder / task)
        mtlcore.run(config, out=places[task])
    return places


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return trained(tmp_path_factory.mktemp("teachers"), *NAMES)


class TestMethod(MethodContract):
    method = "kdmtl"
    overrides = SMALL

    @pytest.fixture(autouse=True)
    def taught(self, teachers: dict[str, str]) -> None:
        self.given = tuple(f"teachers.{task}={place}" for task, place in teachers.items())


class TestTeacher(MethodContract):
    method = "kdmtl-teacher"
    overrides = SMALL


class TestOnNYUv2(MethodContract):
    method = "kdmtl-nyuv2"
    needs_files = True


class TestTeacherOnNYUv2(MethodContract):
    method = "kdmtl-teacher-nyuv2"
    needs_files = True


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_kdmtl.plugin")
    assert_plugin_is_whole("mtlcore_kdmtl.plugin")


def taught_by(loss: KDMTL, *seeds: int) -> KDMTL:
    models = [tiny_learner(seed=seed).model for seed in seeds]
    loss.teachers = dict(zip(loss.needs_teachers, map(Teacher, models), strict=True))
    return loss


def predicted(tasks: Sequence[str] = NAMES) -> dict[str, Tensor]:
    """What the loss reads of predictions is which there are."""
    return dict.fromkeys(tasks, torch.zeros(()))


def test_terms_are_those_of_the_equation() -> None:
    loss = taught_by(KDMTL(TINY_TASKS, INFO, weights={"normals": 2.0}), 1, 2, 3)
    batch = tiny_batch(3)
    features = tiny_learner(seed=4).model.features(batch.inputs, NAMES)
    terms = loss(batch, features, predicted())
    assert set(terms) == {f"kdmtl/{task}" for task in NAMES}

    def unit(x: Any) -> Any:
        return x / np.sqrt((x * x).sum(1, keepdims=True) + 1e-6)

    for task, seed in zip(NAMES, (1, 2, 3), strict=True):
        model = tiny_learner(seed=seed).model.eval()
        wanted = model.features(batch.inputs, [task]).of(task)
        expected = 0.0
        for place, (own, other) in enumerate(zip(features.of(task), wanted, strict=True)):
            weight = dict(loss.named_parameters())[f"adapters.{_key(task)}.{place}.weight"]
            mapped = np.tensordot(weight.detach().numpy(), own.detach().numpy(), (1, 1))
            difference = unit(np.moveaxis(mapped, 0, 1)) - unit(other.detach().numpy())
            expected += (difference**2).sum(1).mean()
        lambda_ = 2.0 if task == "normals" else 1.0
        assert float(terms[f"kdmtl/{task}"].detach()) == pytest.approx(lambda_ * expected, rel=1e-5)


def _key(task: str) -> str:
    return next(each.key for each in TINY_TASKS if each.name == task)


def test_what_an_adapter_can_undo_costs_nothing() -> None:
    """Features that are the teacher's, turned and of another length."""
    info = FeatureInfo((6,), (2,))
    loss = KDMTL(TINY_TASKS[:1], info)
    model = tiny_learner(seed=1).model.eval()
    batch = tiny_batch(3)
    there = model.features(batch.inputs, ["segmentation"]).shared[0]
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    mine = 3 * torch.einsum("oc,bchw->bohw", turn, there)
    adapter = next(loss.parameters())
    # The tiny network has a map per task too, for which this loss has no adapter.
    shared = SimpleNamespace(tasks=model.tasks, features=lambda *_: Features(shared=(there,)))
    loss.teachers = {"segmentation": cast(Teacher, shared)}
    features = Features(shared=(mine,))
    before = loss(batch, features, predicted(["segmentation"]))["kdmtl/segmentation"]
    with torch.no_grad():
        adapter.copy_(turn.t())
    after = loss(batch, features, predicted(["segmentation"]))["kdmtl/segmentation"]
    assert float(before.detach()) > 0.1
    assert float(after.detach()) == pytest.approx(0, abs=1e-6)


def test_unlabelled_tasks_are_taught_and_teachers_stay_as_they_are() -> None:
    loss = taught_by(KDMTL(TINY_TASKS, INFO), 1, 2, 3)
    learner = tiny_learner(cross_task=[loss])
    losses = learner(tiny_batch(absent=["depth"]), NAMES)
    assert "depth" not in losses.raw
    losses.cross["kdmtl/depth"].backward()  # type: ignore[no-untyped-call]
    backbone = learner.model.backbone
    assert all(p.grad is not None for p in backbone.task_parameters("depth"))
    assert all(p.grad is None for p in learner.model.head("depth").parameters())


def test_adapters_have_rates_of_their_own() -> None:
    loss = KDMTL(TINY_TASKS, INFO, lr=0.1, weight_decay=0.5)
    (group,) = loss.parameter_groups()
    assert (group["lr"], group["weight_decay"], "schedule" in group) == (0.1, 0.5, False)
    assert len(group["params"]) == 6
    assert [*KDMTL(TINY_TASKS, INFO).parameter_groups()[0]] == ["params"]


def test_a_task_without_weight_needs_no_teacher() -> None:
    loss = KDMTL(TINY_TASKS, INFO, weights={"depth": 0})
    assert loss.needs_teachers == ("segmentation", "normals")
    assert loss.needs(tiny_batch(), NAMES) == ["segmentation", "normals"]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no task named 'dept'.*did you mean 'depth'"):
        KDMTL(TINY_TASKS, INFO, weights={"dept": 1.0})
    assert_settings_are_checked("losses", "kdmtl", weights=[{"depth": -1}], lr=[-1.0])
    batch = tiny_batch()
    features = tiny_learner().model.features(batch.inputs, NAMES)
    loss = taught_by(KDMTL(TINY_TASKS, INFO), 1, 2, 3)
    small = Features(shared=(features.shared[0][:, :, :2],), per_task=features.per_task)
    message = r"teachers\.segmentation: its features have the shapes 6x4x6, 5x4x6.*run 6x2x6, 5x4x6"
    with pytest.raises(UsageError, match=message):
        loss(batch, small, predicted())
    other = tiny_learner(tasks=TINY_TASKS[1:]).model
    loss.teachers = {**loss.teachers, "segmentation": Teacher(other)}
    with pytest.raises(UsageError, match=r"teachers\.segmentation: has learnt depth, normals"):
        loss(batch, features, predicted())


def test_a_taught_run_needs_its_teachers_no_more(tmp_path: Path) -> None:
    places = trained(tmp_path, "depth", "normals")
    changes = ["tasks=['depth', 'normals']", "training.epochs=1", "training.steps=2", *SMALL]
    changes += [f"teachers.{task}={place}" for task, place in places.items()]
    make = partial(resolve, Plugins.from_environment(), ["kdmtl"])
    mtlcore.run(make([set_layer(changes)]), out=str(tmp_path / "run"))
    for place in places.values():
        shutil.rmtree(place)
    learner = load_run(Plugins.from_environment(), str(tmp_path / "run"), "last").learner
    assert any(name.startswith("cross_task.0.adapters") for name, _ in learner.named_parameters())
