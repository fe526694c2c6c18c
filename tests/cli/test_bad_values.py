"""Values that nothing can be done with: refused by their path before anything runs, or told after.

Every setting of every component is fed what it cannot be in tests/config/test_every_setting.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from mtlcore.plugins import Plugins
from mtlcore.storage import load_checkpoint, save_checkpoint

Command = Callable[..., Result]
Place = Any  # the class in conftest.py
PLUGINS = Plugins.from_environment(())
LAST = "run/checkpoints/last.safetensors"

REFUSED: list[tuple[str, str]] = [
    ("optimizer.clip=-1", "optimizer.clip: expected float > 0 | None, got -1"),
    ("optimizer.clip=0", "optimizer.clip: expected float > 0 | None, got 0"),
    ("optimizer.clip=nan", "optimizer.clip: expected float > 0 | None, got nan (NaN is no number)"),
    ("optimizer.clip=inf", "optimizer.clip: expected float > 0 | None, got inf (not finite"),
    ("optimizer.lr=-1e-3", "optimizer.lr: expected float >= 0, got -0.001"),
    ("optimizer.lr=nan", "optimizer.lr: expected float >= 0, got nan"),
    ("optimizer.lr=inf", "optimizer.lr: expected float >= 0, got inf"),
    ("optimizer.lr=1e39", "optimizer.lr: expected float >= 0, got 1e+39"),
    ("optimizer.lr=true", "optimizer.lr: expected float >= 0, got True"),
    ("optimizer.lr='0.1'", "optimizer.lr: expected float >= 0, got '0.1'"),
    ("optimizer.eps=0", "optimizer.eps: expected float > 0, got 0"),
    ("optimizer.weight_decay=-1", "optimizer.weight_decay: expected float >= 0, got -1"),
    ("optimizer.betas=[0.9, 1]", "optimizer.betas[1]: expected float >= 0 and < 1, got 1"),
    ("optimizer.betas=[0.9]", "optimizer.betas: expected tuple["),
    ("optimizer.betas=[nan, nan]", "optimizer.betas[0]: expected float"),
    ("optimizer.schedule.warmup=-1", "optimizer.schedule.warmup: expected float >= 0 and <= 1"),
    ("optimizer.schedule.warmup=1.5", "optimizer.schedule.warmup: expected float >= 0 and <= 1"),
    ("optimizer.schedule.gamma=0", "optimizer.schedule.gamma: expected float > 0, got 0"),
    ("optimizer.schedule.power=-1", "optimizer.schedule.power: expected float >= 0, got -1"),
    ("optimizer.schedule.patience=-1", "optimizer.schedule.patience: expected int >= 0, got -1"),
    ("optimizer.schedule.at=[2]", "optimizer.schedule.at[0]: expected float >= 0 and <= 1, got 2"),
    ("optimizer.schedule=[]", "optimizer.schedule: expected Schedule, got []"),
    ("optimizer={name='sgd',momentum=1}", "optimizer.momentum: expected float >= 0 and < 1"),
    ("optimizer={name='sgd',momentum=nan}", "optimizer.momentum: expected float >= 0 and < 1"),
    ("seed=-1", "seed: expected int >= 0 and < 4611686018427387904, got -1"),
    ("seed=18446744073709551615", "seed: expected int >= 0 and < 4611686018427387904"),
    ("seed=1.0", "seed: expected int >= 0"),
    ("seed=nan", "seed: expected int >= 0"),
    ("tasks=['depth','depth']", "tasks: names 'depth' more than once"),
    ("tasks='depth'", "tasks: expected list[str], got 'depth'"),
    ("tasks=[1]", "tasks[0]: expected str, got 1"),
    ("tasks=[['depth']]", "tasks[0]: expected str, got ['depth']"),
    (f"method='{'a' * 300}'", "method: expected str of length >= 1 and <= 100, got 'aaa"),
    ("method=''", "method: expected str of length >= 1 and <= 100, got ''"),
    ("method=3", "method: expected str"),
    ("device=''", "device: expected str of length"),
    ("device=3", "device: expected str"),
    ("plugins=3", "plugins: expected a list of plugin files, got 3"),
    ("plugins=[3]", "plugins: expected a list of plugin files, got [3]"),
    ("data=3", "data: expected a table, got 3 (--set)"),
    ("model=nan", "model: expected a table, got nan (--set)"),
    ("model.heads='conv'", "model.heads: expected a table, got 'conv'"),
    ("losses=[]", "losses: expected a table, got []"),
    ("losses.depth=3", "losses.depth: expected a table, got 3"),
    ("metrics.depth=3", "metrics.depth: expected a table, got 3"),
    ("training=[3]", "training: expected a table, got [3]"),
    ("training.steps=0", "training.steps: expected int >= 1 | None, got 0"),
    ("training.steps=-3", "training.steps: expected int >= 1 | None, got -3"),
    ("training.steps=1.5", "training.steps: expected int >= 1 | None, got 1.5"),
    ("training.steps=9223372036854775808", "training.steps: expected int >= 1 | None, got 9223372"),
    ("training.steps=0x" + "f" * 5000, "training.steps: expected int >= 1 | None, got a number th"),
    ("training.batch_size=0", "training.batch_size: expected int >= 1"),
    ("training.batch_size=1000001", "training.batch_size: expected int >= 1 and <= 1000000"),
    ("training.accumulate=-1", "training.accumulate: expected int >= 1"),
    ("training.threads=100000", "training.threads: expected int >= 1 and <= 1024 | None, got 1000"),
    ("training.ema=1", "training.ema: expected float > 0 and < 1 | None, got 1"),
    ("training.ema=nan", "training.ema: expected float > 0 and < 1 | None, got nan"),
    ("training.patience=0", "training.patience: expected int >= 1 | None, got 0"),
    ("training.max_skipped=0", "training.max_skipped: expected int >= 1, got 0"),
    ("training.average_last=0", "training.average_last: expected int >= 1, got 0"),
    ("training.evaluate_every=0", "training.evaluate_every: expected int >= 1 | None, got 0"),
    ("data.train=0", "data.train: expected int >= 1 and <= 100000000 | None, got 0"),
    ("data.train=-1", "data.train: expected int >= 1"),
    ("data.train=4611686018427387904", "data.train: expected int >= 1 and <= 100000000"),
    ("data.val=0", "data.val: expected int >= 1"),
    ("data.workers=-1", "data.workers: expected int >= 0 and <= 1024, got -1"),
    ("data.workers=100000", "data.workers: expected int >= 0 and <= 1024, got 100000"),
    ("data.size=[0, 32]", "data.size[0]: expected int >= 1 and <= 65536, got 0"),
    ("data.size=[32]", "data.size: expected tuple["),
    ("data.size=[32, 99999999]", "data.size[1]: expected int >= 1 and <= 65536, got 99999999"),
    ("data.size=32", "data.size: expected tuple["),
    ("data.size=32x", "data.size: expected tuple["),
    ("data.train_fraction=0", "data.train_fraction: expected float > 0 and <= 1 | None, got 0"),
    ("data.train_fraction=nan", "data.train_fraction: expected float > 0 and <= 1 | None, got nan"),
    ("data.augment.scales=[]", "data.augment.scales: expected tuple[float >= 1 and <= 100, ...] o"),
    ("data.augment.scales=[0]", "data.augment.scales[0]: expected float >= 1 and <= 100, got 0"),
    ("data.augment.scales=[1, -1]", "data.augment.scales[1]: expected float >= 1"),
    ("data.augment.scales=[1, nan]", "data.augment.scales[1]: expected float >= 1"),
    ("data.augment.scales=[1e9]", "data.augment.scales[0]: expected float >= 1 and <= 100"),
    ("data.augment.flip=1", "data.augment.flip: expected bool, got 1"),
    ("data.seed=-1", "data.seed: expected int >= 0"),
    ("model.backbone.width=0", "model.backbone.width: expected float > 0 and <= 16, got 0"),
    ("model.backbone.width=nan", "model.backbone.width: expected float > 0 and <= 16, got nan"),
    ("model.backbone.width=1e9", "model.backbone.width: expected float > 0 and <= 16"),
    ("model.backbone={name='resnet',depth=-18}", "model.backbone.depth: expected 18 | 34 | 50 | 1"),
    ("model.freeze='backbone'", "model.freeze: expected a list of names"),
    ("model.freeze=[1]", "model.freeze: expected a list of names"),
    ("balancer.update_every=0", "balancer.update_every: expected int >= 1, got 0"),
    ("balancer.update_every=true", "balancer.update_every: expected int >= 1, got True"),
    ("balancer={name='dwa',temperature=0}", "balancer.temperature: expected float > 0, got 0"),
    ("balancer={name='dwa',window=0}", "balancer.window: expected int >= 1 | None, got 0"),
    ("balancer={name='fixed',weights={depth=-1}}", "balancer.weights.depth: expected float >= 0"),
    ("balancer={name='fixed',weights={depth=nan}}", "balancer.weights.depth: expected float >= 0"),
    ("balancer={name='uncertainty',initial=inf}", "balancer.initial: expected float >= -80 and"),
    ("balancer={name='uncertainty',lr=-1}", "balancer.lr: expected float >= 0 | None, got -1"),
    ("balancer={name='nash-mtl',max_norm=-1}", "balancer.max_norm: expected float > 0 | None"),
    ("balancer={name='pareto-mtl',preferences=1}", "balancer.preferences: expected int >= 2"),
    ("balancer={name='pareto-mtl',preference=-1}", "balancer.preference: expected int >= 0 | None"),
    ("balancer={name='ira',main='depth',clip=0}", "balancer.clip: expected float > 0 or inf, got "),
    ("balancer={name='ira',main='depth',bins=1}", "balancer.bins: expected int >= 2"),
    ("balancer={name='ira',main='depth',smoothing=1}", "balancer.smoothing: expected float >= 0 a"),
    ("balancer.chain=3", "balancer.chain: expected a list of tables"),
    ("balancer.name=[]", "balancer.name: name one of mtl list balancers"),
    ("losses.depth={name='huber',delta=0}", "losses.depth.delta: expected float > 0, got 0"),
    ("losses.depth={name='hu-depth',a=-1}", "losses.depth.a: expected float > 0, got -1"),
    ("losses.segmentation={name='focal',gamma=-1}", "losses.segmentation.gamma: expected float >="),
    ("losses.segmentation={name='cross-entropy',class_weights=[0]}",
     "losses.segmentation.class_weights[0]: expected float > 0, got 0"),
    ("model.head={name='deeplab',dropout=2}", "model.heads.segmentation.dropout: expected float >"),
    ("model.head={name='deeplab',rates=[]}", "model.heads.segmentation.rates: expected tuple[int"),
    ("model.head={name='deeplab',channels=0}", "model.heads.segmentation.channels: expected int >"),
    ("cross_task=[{name='mtpsl',weight=-1}]", "cross_task[0].weight: expected float >= 0, got -1"),
    ("cross_task=[{name='mtpsl',film={lr=nan}}]", "cross_task[0].film.lr: expected float >= 0"),
    ("cross_task={}", "cross_task: expected a list of tables"),
    ("data.augmentations=[{name='photometric',contrast=2}]",
     "data.augmentations[0].contrast: expected float >= 0 and <= 1, got 2"),
    ("episodes={name='task-powerset',query=1}", "episodes.query: expected float > 0 and < 1, got "),
    ("episodes={name='task-powerset',episodes=0}", "episodes.episodes: expected int >= 1 | None"),
    ("optimizer={name='mtml',inner_lr=0}", "optimizer.inner_lr: expected float > 0, got 0"),
    ("optimizer={name='mtml',inner_steps=0}", "optimizer.inner_steps: expected int >= 1, got 0"),
    ("teachers.t=3", "teachers.t: expected a run's directory or URL, got 3"),
    ("initial.new='depth'", "initial.new: expected tuple[str, ...], got 'depth'"),
    ("loggers=[3]", "loggers: expected a list of tables"),
    ("loggers=[{name='json-lines',to=3}]", "loggers[0].to: expected str, got 3"),
]  # fmt: skip


@pytest.mark.parametrize(("assignment", "says"), REFUSED, ids=[a[:60] for a, _ in REFUSED])
def test_a_value_is_refused_by_its_path(mtl: Command, assignment: str, says: str) -> None:
    result = mtl("config", "--set", assignment, plugins=PLUGINS)
    assert result.exit_code == 2, (result.output, result.exception)
    assert says in result.stderr
    assert "Traceback" not in result.output


# A run that learns nothing


def labels(place: Place, tasks: dict[str, list[Any]]) -> str:
    place.write("labels.json", json.dumps(tasks))
    return "--set=data.labels=labels.json"


IDLE = [
    ({"segmentation": ["none-such"], "depth": ["nor-this"]},
     "no training sample has a label of segmentation, depth. data.labels = 'labels.json'"),
    ({"segmentation": [], "depth": []}, "no training sample has a label of segmentation, depth"),
]  # fmt: skip


@pytest.mark.parametrize(("tasks", "says"), IDLE, ids=["names that do not exist", "no names"])
def test_a_run_without_a_label_fails(
    mtl: Command, place: Place, tasks: dict[str, list[Any]], says: str
) -> None:
    result = mtl("run", *place.tiny, labels(place, tasks), "--out=run", env={"MTL_PLUGINS": ""})
    assert result.exit_code == 1, (result.output, result.exception)
    assert says in result.stderr
    about = json.loads((place.path / "run/run.json").read_text())
    assert about["status"] == "failed" and "nothing was learnt in 2 steps" in about["reason"]


def test_names_in_a_list_of_labels_that_partly_match_are_told(mtl: Command, place: Place) -> None:
    tasks = {"segmentation": ["0", "none-such", "1.png"], "depth": ["1"]}
    result = mtl("run", *place.tiny, labels(place, tasks), "--out=run", env={"MTL_PLUGINS": ""})
    assert result.exit_code == 0, (result.output, result.exception)
    for told in (
        "data.labels: segmentation: 2 of 3 names are those of no training sample, such as '1.png'",
        "data.labels: 4 of 6 training samples have no label of any task, such as '2'",
    ):
        assert told in result.output, result.output
    # Names that all match are not told.
    tasks = {"segmentation": ["0", "2", "3"], "depth": ["1", "4", "5"]}
    result = mtl("run", *place.tiny, labels(place, tasks), "--out=all", env={"MTL_PLUGINS": ""})
    assert result.exit_code == 0 and "data.labels:" not in result.output, result.output


def test_a_run_whose_steps_are_all_skipped_fails(mtl: Command, place: Place) -> None:
    place.write("own.py", ALL_NAN)
    result = mtl(
        "run", *place.tiny, "--plugin=own.py", "--set=balancer.name=spoil", "--out=run",
        "--set=training.max_skipped=100", env={"MTL_PLUGINS": ""},
    )  # fmt: skip
    assert result.exit_code == 1, (result.output, result.exception)
    assert "nothing was learnt in 6 steps: all of them were skipped" in result.stderr


ALL_NAN = """
from mtlcore import BalancerSpec, hookimpl

@hookimpl
def mtl_balancers():
    from mtlcore.balancing import LossBalancer

    class Spoil(LossBalancer):
        def transform(self, losses, context):
            return {task: loss * float("nan") for task, loss in losses.items()}

    yield BalancerSpec(name="spoil", target=Spoil)
"""


@pytest.mark.parametrize(
    ("labels_of", "says"),
    [
        ("[]", "expected dict[str, list[int | str]], got []"),
        ('{"segmentation": [[]], "depth": []}', "segmentation[0]: expected int | str"),
        ('{"segmentation": [1.5], "depth": []}', "segmentation[0]: expected int | str"),
        ('{"segmentation": 3, "depth": []}', "segmentation: expected list[int | str], got 3"),
        ('{"segmentation": [6], "depth": [0]}', "segmentation: there is no sample 6"),
        ('{"segmentation": [-1], "depth": [0]}', "segmentation: there is no sample -1"),
        ('{"segmentation": ["a"]}', "says nothing about depth"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_list_of_labels_of_another_shape_is_told(
    mtl: Command, place: Place, labels_of: str, says: str
) -> None:
    place.write("labels.json", labels_of)
    result = mtl("run", *place.tiny, "--set=data.labels=labels.json", env={"MTL_PLUGINS": ""})
    assert result.exit_code == 2, (result.output, result.exception)
    assert "labels.json" in result.stderr and says in result.stderr


# Parameters that are infinite, and configurations that were edited


def test_no_checkpoint_holds_parameters_that_are_not_finite(mtl: Command, place: Place) -> None:
    place.write("own.py", TOO_FAR)
    result = mtl(
        "run", *place.tiny, "--plugin=own.py", "--set=optimizer.name=far", "--out=run",
        env={"MTL_PLUGINS": ""},
    )  # fmt: skip
    assert result.exit_code == 1, (result.output, result.exception)
    for fragment in ("stopped at step 4", "no longer finite", LAST, "optimizer.lr"):
        assert fragment in result.stderr
    for file in (place.path / "run/checkpoints").iterdir():
        learner = load_checkpoint(file)["learner"]
        assert all(t.isfinite().all() for t in learner.values() if hasattr(t, "isfinite"))
    assert load_checkpoint(place.path / LAST)["progress"]["step"] == 2


TOO_FAR = """
from mtlcore import OptimizerSpec, hookimpl

@hookimpl
def mtl_optimizers():
    yield OptimizerSpec(name="far", target=far)

def far(learner):
    import torch
    from mtlcore.optimizers import GradientDescent, Schedule

    class Far(torch.optim.SGD):
        steps = 0

        def step(self, closure=None):
            self.steps += 1
            super().step()
            if self.steps == 4:  # a finite gradient, and one step too far
                self.param_groups[0]["params"][0].data.fill_(float("inf"))

    return GradientDescent(learner, lambda groups: Far(groups, lr=1e-3), Schedule(), None)
"""


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_an_edited_configuration_is_told_on_resuming(mtl: Command, place: Place) -> None:
    place.run()
    edit(place.path / "run/config.toml", "lr = 0.002", "lr = 0.5")
    result = mtl("run", "--resume", "--out=run", env={"MTL_PLUGINS": ""})
    assert result.exit_code == 2, (result.output, result.exception)
    for fragment in ("run/config.toml: was edited", "optimizer.lr", "another --out"):
        assert fragment in result.stderr


def test_a_run_of_an_earlier_version_goes_on(mtl: Command, place: Place) -> None:
    file = place.run() / "checkpoints/last.safetensors"
    state = load_checkpoint(file)
    del state["config"]
    save_checkpoint(file, state)
    result = mtl("run", "--resume", "--out=run", env={"MTL_PLUGINS": ""})
    assert result.exit_code == 0, (result.output, result.exception)


CHECKPOINTS: list[tuple[str, Any, str]] = [
    ("progress", [], "progress: expected a table"),
    ("progress", {"step": "x"}, "progress.step: expected int, got 'x'"),
    ("ranks", 3, "ranks: expected a list, got 3"),
    ("ranks", [3], "ranks[0]: expected a table, got 3"),
    ("ranks", [{}], "belongs to another model"),
    ("random", {}, "random: has no 'balancing'"),
    ("random", {"balancing": 3}, "belongs to another model"),
    ("metrics_length", -1, "metrics_length: expected int >= 0, got -1"),
    ("threads", None, "threads: expected int, got None"),
    ("optimizer", {}, "belongs to another model"),
    ("plans", {"first": []}, "belongs to another model"),
    ("learner", [], "learner: expected a table, got []"),
]


@pytest.mark.parametrize(("part", "value", "says"), CHECKPOINTS)
def test_a_checkpoint_of_another_shape_is_told_on_resuming(
    mtl: Command, place: Place, part: str, value: Any, says: str
) -> None:
    file = place.run() / "checkpoints/last.safetensors"
    save_checkpoint(file, {**load_checkpoint(file), part: value})
    result = mtl("run", "--resume", "--out=run", env={"MTL_PLUGINS": ""})
    assert result.exit_code == 1, (result.output, result.exception)
    assert LAST in result.stderr and says in result.stderr


def test_a_variant_with_a_name_that_is_no_folder_is_refused(mtl: Command, place: Place) -> None:
    shutil.copytree(place.finished, place.path / "run")
    place.write("study.toml", f'name = "s"\nseeds = [0]\n[variants.{"a" * 300}]\n')
    result = mtl("study", "study.toml", "--out=study", "--prepare", plugins=PLUGINS)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "variants.aaa" in result.stderr and "at most 100" in result.stderr


def test_a_task_whose_name_is_too_long_for_files_is_refused(mtl: Command, place: Place) -> None:
    name = "a" * 300
    place.write("photos/dataset.toml", DESCRIPTION.format(name=name))
    words = ["--set=data.name=folder", "--set=data.root=photos"]
    result = mtl("config", *words, plugins=PLUGINS)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "longer than" in result.stderr


DESCRIPTION = """
image = "{{split}}/rgb/{{name}}.png"
[tasks.{name}]
kind = "depth"
file = "{{split}}/depth/{{name}}.npy"
invalid = 0
"""
