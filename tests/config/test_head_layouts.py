"""A head that cannot predict what its task's labels are is refused before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mtlcore import HeadSpec, Task
from mtlcore.config import Layer, resolve
from mtlcore.engine.checks import check_model
from mtlcore.errors import ConfigError, UsageError
from mtlcore.features import FeatureInfo
from mtlcore.models import Head
from mtlcore.plugins import Plugins
from mtlcore.tasks import LAYOUTS
from mtlcore.testing import tiny_learner

DATASET = """
from mtlcore import DatasetSpec, Task, hookimpl
from mtlcore.data import Dataset

class Mixed(Dataset):
    def __init__(self, root, split): ...
    def __len__(self): return 2
    def __getitem__(self, index): raise NotImplementedError

    @classmethod
    def describe(cls, root):
        yield Task(name="scene", kind="classification", channels=2)
        yield Task(name="tags", kind="multilabel", channels=3)
        yield Task(name="depth", kind="depth", channels=1)
        yield Task(name="light", kind="regression", channels=1, layout="map")
        yield Task(name="price", kind="regression", channels=1)

    @classmethod
    def default_size(cls, root): return (32, 32)

@hookimpl
def mtl_datasets():
    yield DatasetSpec(name="mixed", target=Mixed)
"""
PLUGINS = Plugins()
METHODS = [c.full_name for c in PLUGINS.all("methods")]
HEADS = [(c.full_name, c.spec.layouts) for c in PLUGINS.all("heads")]


def settings(root: Path, task: str, head: str) -> Layer:
    (root / "mixed.py").write_text(DATASET)
    return Layer(
        "test",
        {
            "plugins": [str(root / "mixed.py")],
            "data": {"name": "mixed"},
            "tasks": [task],
            "model": {"heads": {task: {"name": head}}},
        },
    )


def problems(method: str, layer: Layer) -> list[str]:
    try:
        resolve(Plugins(), [method], [layer])
    except ConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_refuses_a_head_of_another_layout(method: str, tmp_path: Path) -> None:
    for task, head in (("scene", "conv"), ("tags", "deeplab"), ("depth", "linear")):
        found = [
            line
            for line in problems(method, settings(tmp_path, task, head))
            if line.startswith(f"model.heads.{task}.name: '{head}' predicts")
        ]
        assert len(found) == 1, f"{method}: {head} for {task}"
        fitting = ("conv, ", "deeplab") if task == "depth" else ("linear",)
        assert all(name in found[0] for name in fitting)
    # A preset's own head for all tasks is no other.
    layer = settings(tmp_path, "scene", "conv")
    del layer.values["model"]
    found = [line for line in problems(method, layer) if line.startswith("model.heads.scene")]
    assert len(found) <= 1 and all("linear" in line for line in found)


@pytest.mark.parametrize(("task", "head"), [("light", "conv"), ("price", "linear")])
def test_the_default_head_of_a_kind_is_that_of_the_layout(
    task: str, head: str, tmp_path: Path
) -> None:
    layer = settings(tmp_path, task, head)
    del layer.values["model"]
    config = resolve(Plugins(), [], [layer])
    assert config.heads[task].component.spec.name == head
    assert config.losses[task].component.spec.name == "l1"


@pytest.mark.parametrize(("head", "layouts"), HEADS)
def test_heads_declare_what_they_predict(head: str, layouts: tuple[str, ...]) -> None:
    features = FeatureInfo((8, 8), (8, 4))
    kinds = {
        "map": "depth",
        "sequence": "tagging",
        "vector": "regression",
        "label": "classification",
    }
    for layout in LAYOUTS:
        task = Task(name="x", kind=kinds[layout], channels=3)
        make = PLUGINS.get("heads", head).load()
        if layout == "sequence" and layout in layouts:
            shape = make(task, features).eval()([torch.rand(2, 8, 2), torch.rand(2, 8, 4)]).shape
            assert shape == (2, 3, 4)
        elif layout in layouts:
            shape = (
                make(task, features).eval()([torch.rand(2, 8, 2, 3), torch.rand(2, 8, 4, 6)]).shape
            )
            assert shape == ((2, 3, 16, 24) if layout == "map" else (2, 3))
        else:
            with pytest.raises(UsageError, match="'x'"):
                make(task, features)


def test_a_record_names_layouts_that_there_are() -> None:
    with pytest.raises(ValueError, match="name some of map, sequence, vector, label"):
        HeadSpec(name="x", target="a:B", task_kinds=("*",), layouts=("image",))
    with pytest.raises(ValueError, match="name some of"):
        HeadSpec(name="x", target="a:B", task_kinds=("*",), layouts=())


class Pooled(Head):
    """One value per sample, whatever the task; says nothing of layouts."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(channels)

    def forward(self, features):
        return self.layer(features[-1].mean((2, 3)))

    def reset_parameters(self) -> None: ...


def test_a_head_that_declares_nothing_is_asked_before_the_first_step() -> None:
    learner = tiny_learner()
    key = learner.model.tasks["depth"].key
    learner.model.heads[key] = Pooled(1)
    with pytest.raises(UsageError, match=r"model\.heads\.depth: Pooled predicts \[1\]"):
        check_model(learner, torch.rand(1, 3, 8, 12))
    learner.model.heads[key] = nn.Linear(3, 1)
    learner.model.heads[key].__class__ = type(
        "Strange",
        (Head, nn.Linear),
        {"reset_parameters": lambda _: None, "forward": nn.Linear.forward},
    )
    with pytest.raises(UsageError, match=r"model\.heads\.depth: Strange cannot read the maps"):
        check_model(learner, torch.rand(1, 3, 8, 12))
