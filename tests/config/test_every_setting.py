"""Every setting of every component, and of the core's own tables, is fed what it cannot be.

Each value is refused by its path before anything is built, or the component can be built with it.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from mtlcore.config import (
    BALANCING_KEYS,
    CORE_DEFAULTS,
    AugmentConfig,
    DataConfig,
    InitialConfig,
    Layer,
    TrainingConfig,
    resolve,
)
from mtlcore.config.run_config import Chosen
from mtlcore.errors import ConfigError, MtlError
from mtlcore.features import FeatureInfo
from mtlcore.plugins import (
    KINDS,
    REQUIRED,
    Component,
    CrossTaskLossSpec,
    Plugins,
    create,
    expanded,
    nested_in,
    settings_of,
    structure,
)
from mtlcore.plugins.settings import unmarked
from mtlcore.runs.execution import try_step
from mtlcore.searchers import FloatRange
from mtlcore.tasks import Task
from mtlcore.testing import tiny_learner

PLUGINS = Plugins.from_environment(())
HOSTILE: dict[str, Any] = {
    "a text": "no number",
    "an empty text": "",
    "a boolean": True,
    "NaN": math.nan,
    "infinity": math.inf,
    "negative infinity": -math.inf,
    "negative": -1,
    "a little below zero": -1e-9,
    "zero": 0,
    "zero point zero": 0.0,
    "huge": 2**62,
    "beyond 64 bits": 2**70,
    "beyond single precision": 1e300,
    "thousands of digits": 10**5000,
    "an empty list": [],
    "an empty table": {},
    "a list of NaN": [math.nan],
    "a list of negatives": [-1, -1],
    "a list of lists": [[]],
    "a table of NaN": {"depth": math.nan},
    "a table of tables": {"depth": {}},
}
# As the tests of contracts have them: one task of each kind that a component may serve.
CHANNELS = {
    "segmentation": 3,
    "depth": 1,
    "normals": 3,
    "edges": 1,
    "saliency": 1,
    "classification": 2,
    "multilabel": 2,
    "regression": 1,
}
TASKS = {kind: Task(name=kind, kind=kind, channels=n) for kind, n in CHANNELS.items()}
DENSE = (TASKS["segmentation"], TASKS["depth"])
#: Values of the settings that have no default.
GIVEN: dict[str, Any] = {
    "inputs": 3,
    "main": "segmentation",
    "weights": {"depth": 2.0},
    "samples": 2,
    "file": "rows.csv",
    "image": "photographs/{file}",
    "shards": "{split}-*.tar",
    "targets": {"weight": {"kind": "regression", "column": "weight"}},
    "sources": [{"name": "rooms", "samples": 2}],
    "source": {"name": "rooms", "samples": 2},
    "backbone": {"name": "resnet", "depth": 18, "width": 0.03125},
    "encoder": {"name": "resnet", "depth": 18, "width": 0.125},
    "optimizer": {"name": "sgd"},
}


def build(component: Component, settings: dict[str, Any], place: Path) -> None:
    """Make the component as a run would, as far as its settings have a say."""
    chosen = Chosen(component, with_inner(component, settings))
    features = FeatureInfo((8,), (8,))
    match component.kind:
        case "backbones":
            chosen.make(DENSE)
        case "heads" | "losses" | "metrics":
            if isinstance(component.spec, CrossTaskLossSpec):
                chosen.make(DENSE, features)
            else:
                (kind, *_) = [k for k in TASKS if component.spec.serves(k)]
                more = (features,) if component.kind == "heads" else ()
                chosen.make(TASKS[kind], *more)
        case "necks":
            chosen.make(FeatureInfo((8, 8), (16, 8), main_map=0))
        case "balancers":
            chosen.make().prepare(DENSE, ())
        case "episode-samplers":
            sampler = chosen.make([task.name for task in DENSE], {"train": 8, "val": 2})
            sampler.steps(2)
        case "optimizers":
            chosen.make(tiny_learner())
        case "datasets":
            component.load().describe(str(place), **settings)
            component.load().kind_of_inputs(str(place), **settings)
            chosen.make(str(place), "train")
        case "augmentations":
            chosen.make(DENSE)
        case "loggers":
            chosen.make()
        case "searchers":
            rate = FloatRange(low=1e-4, high=1.0, log=True)
            chosen.make({"optimizer.lr": rate}, 1, 0).ask(0, ())


def with_inner(component: Component, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in which tables of other components are what makes these."""
    made = dict(settings)
    for setting in settings_of(component.load()):
        nested, table = nested_in(setting.annotation), settings.get(setting.name)
        if nested is not None and isinstance(table, dict):
            made[setting.name] = partial(created, nested.kind, table)
    return made


def created(kind: str, table: dict[str, Any], *positional: Any) -> Any:
    others = {key: value for key, value in table.items() if key != "name"}
    return create(kind, table["name"], *positional, **others)


LARGE = ("backbones", "necks", "heads", "losses")
DEEPER = [False, pytest.param(True, marks=pytest.mark.slow)]
COMPONENTS = [c for kind in KINDS if kind != "methods" for c in PLUGINS.all(kind)]


@pytest.mark.parametrize("builds", DEEPER)
@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: f"{c.kind}-{c.full_name}")
def test_a_component_builds_with_what_is_not_refused(
    component: Component, builds: bool, tmp_path: Path
) -> None:
    target = component.load()
    needed = [s.name for s in settings_of(target) if s.default is REQUIRED]
    built = set()
    for setting in expanded(settings_of(target)):
        if setting.name.count(".") > 1:  # a record in a record: it is some optimizer's too
            continue
        for what, value in HOSTILE.items():
            given = {name: GIVEN[name] for name in needed}
            put(given, setting.name, value)
            problems: list[str] = []
            settings = structure(target, given, "table", problems)
            if problems:
                first = setting.name.split(".")[0]
                assert all(p.startswith(f"table.{first}") for p in problems), problems
                continue
            # Networks take long to make.
            if repr(settings) in built or (component.kind in LARGE and not builds):
                continue
            built.add(repr(settings))
            try:
                # Networks take no memory there; the others are small.
                with torch.device("meta") if component.kind in LARGE else nullcontext():
                    build(component, settings, tmp_path)
            except MtlError as error:
                assert str(error), (setting.name, what)
            except Exception as error:
                raise AssertionError(f"{setting.name} is {what}: {error!r}") from error


def put(table: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
    table[last] = copy.deepcopy(value)


# The tables that the core itself reads

SMALL = {
    "tasks": ["segmentation", "depth"],
    "device": "cpu",
    "data": {"train": 2, "val": 2, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    "training": {"steps": 1, "batch_size": 2},
}
RECORDS = {
    "data": DataConfig,
    "data.augment": AugmentConfig,
    "training": TrainingConfig,
    "initial": InitialConfig,
}
PATHS = [
    *(f"{path}.{s.name}" for path, record in RECORDS.items() for s in settings_of(record)),
    *CORE_DEFAULTS,
    *(f"balancer.{key}" for key in BALANCING_KEYS),
    "balancer.chain",
    "model.backbone",
    "model.backbone.lr_scale",
    "model.backbone.layer_decay",
    "model.neck",
    "model.neck.name",
    "model.neck.per_task",
    "model.head",
    "model.head.name",
    "model.heads",
    "model.heads.depth",
    "model.freeze",
    "losses.depth",
    "losses.depth.name",
    "metrics.depth",
    "teachers.one",
]


def with_value(path: str, value: Any) -> Layer:
    values = copy.deepcopy(SMALL)
    put(values, path, value)
    return Layer("test", values)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("runs", DEEPER)
def test_a_value_of_the_core_is_refused_by_its_path(path: str, runs: bool) -> None:
    for what, value in HOSTILE.items():
        try:
            config = resolve(PLUGINS, [], [with_value(path, value)])
        except ConfigError as error:
            first = path.split(".")[0]
            assert any(first in problem for problem in error.problems), (what, str(error))
        except MtlError as error:
            assert str(error), what
        except Exception as error:
            raise AssertionError(f"{path} is {what}: {error!r}") from error
        else:
            if not runs or path == "training.compile":  # compiling takes minutes
                continue
            try:
                try_step(config)
            except MtlError as error:
                assert str(error), what
            except Exception as error:
                raise AssertionError(f"{path} is {what} dies in the run: {error!r}") from error


def numbers_without_range(annotation: Any) -> bool:
    if nested_in(annotation):
        return False
    kind, marks = unmarked(annotation)
    if kind in (int, float):
        return not marks
    args = [arg for arg in get_args(kind) if arg is not ...]
    if get_origin(kind) is Literal or set(args) == {str, int}:  # a column by name or number
        return False
    return any(map(numbers_without_range, args))


def test_every_number_declares_its_range() -> None:
    targets = [*(c.load() for c in COMPONENTS), *RECORDS.values()]
    found = {
        f"{target.__qualname__}.{setting.name}"
        for target in targets
        for setting in expanded(settings_of(target))
        if numbers_without_range(setting.annotation)
    }
    assert found == set()
