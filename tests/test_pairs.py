"""Every backbone, balancer, optimizer (with its sampler) and label regime with every other.

What is tried comes from the installed plugins. The default suite runs combinations in which each of
these occurs; those that cover every pair, and all others, are slow. A pair that cannot work is
refused before the first step, and is listed with its reason in docs/pairs.md. Backbones that run
over others are tried over several of them as well.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations, product
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from mtlcore.config import Chosen, Layer, RunConfig, resolve, set_layer
from mtlcore.data import Batch
from mtlcore.display import SilentDisplay
from mtlcore.engine import Session, Training, build_learner, check
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.errors import UsageError
from mtlcore.learner import Learner
from mtlcore.metrics import MetricValues
from mtlcore.optimizers import Optimizer, StepReport
from mtlcore.plugins import REQUIRED, Component, MethodSpec, Plugins, nested_in, settings_of
from mtlcore.ranges import Nested
from mtlcore.runs import export_run
from mtlcore.runs.trained import Trained
from mtlcore.standard.optimizers import adam
from mtlcore.storage import RunDirectory
from mtlcore.testing import TINY_TASKS, tiny_batch, tiny_learner

PAGE = Path(__file__).parents[1] / "docs" / "pairs.md"
IMAGES = ("segmentation", "depth", "normals")
VECTORS = ("colour", "shape", "weight")
ROWS = "a,b,c,colour,shape,weight\n" + "".join(
    f"{i},{i * i % 7},{-i % 3},{'rgb'[i % 3]},{'os'[i // 2 % 2]},{i / 3}\n" for i in range(12)
)
PLUGINS = Plugins()


@attrs.frozen
class Combination:
    """One of each."""

    backbone: str
    balancer: str
    optimizer: str
    labels: str

    def __str__(self) -> str:
        return "-".join(attrs.astuple(self))


def names(kind: str) -> list[str]:
    return [component.spec.name for component in PLUGINS.all(kind)]


AXES = {
    "backbone": names("backbones"),
    "balancer": names("balancers"),
    "optimizer": names("optimizers"),
    "labels": ["full", "one"],
}
Pair = frozenset[tuple[str, str]]


def pairs_of(combination: Combination) -> set[Pair]:
    chosen = attrs.asdict(combination).items()
    return {frozenset(pair) for pair in combinations(chosen, 2)}


def listed() -> dict[str, str]:
    """What docs/pairs.md says is refused: options of the command line, and the reason it gives."""
    return dict(re.findall(r"^\| `(--.+?)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE))


def axes_in(options: str) -> Pair:
    """The choices of the matrix among options of the command line."""
    paths = {
        "model.backbone.name": "backbone",
        "balancer.name": "balancer",
        "optimizer.name": "optimizer",
        "data.labels": "labels",
    }
    given = [word.partition("=") for word in shlex.split(options) if word != "--set"]
    return frozenset((paths[path], value) for path, _, value in given if path in paths)


def inside_in(options: str) -> tuple[str, str] | None:
    """A backbone and the one inside it among options of the command line."""
    found = re.search(r'model\.backbone\.name=(\S+) .*=\{name="([^"]+)"', options)
    return (found[1], found[2]) if found and len(axes_in(options)) == 1 else None


REFUSED = listed()
IMPOSSIBLE_INSIDE = {inside_in(options) for options in REFUSED}
IMPOSSIBLE = {axes_in(options) for options in REFUSED if len(axes_in(options)) == 2}
ALL = [Combination(*chosen) for chosen in product(*AXES.values())]
POSSIBLE = [c for c in ALL if not pairs_of(c) & IMPOSSIBLE]


def choices_of(combination: Combination) -> set[Pair]:
    return {frozenset([choice]) for choice in attrs.asdict(combination).items()}


def covering(
    combinations: Sequence[Combination], parts_of: Callable[[Combination], set[Pair]]
) -> list[Combination]:
    """Some of them with every part of all; the one with most new parts first, again and again.

    Of several such the one with the choices that are rarest so far.
    """
    # Arrays of numbers: every worker of the tests computes this anew.
    numbers: dict[Pair, int] = {}
    parts = np.array(
        [[numbers.setdefault(part, len(numbers)) for part in parts_of(c)] for c in combinations]
    )
    names: dict[str, int] = {}
    chosen = np.array(
        [[names.setdefault(name, len(names)) for name in attrs.astuple(c)] for c in combinations]
    )
    missing = np.ones(len(numbers), dtype=bool)
    uses = np.zeros(len(names), dtype=int)
    found: list[Combination] = []
    while missing.any():
        gains = missing[parts].sum(1)
        most = np.flatnonzero(gains == gains.max())
        best = most[uses[chosen[most]].sum(1).argmin()]
        found.append(combinations[best])
        missing[parts[best]] = False
        uses[chosen[best]] += 1
    return found


EACH = covering(POSSIBLE, choices_of)
COVER = covering(POSSIBLE, pairs_of)
TRIED = {*EACH, *COVER}


# What a component is tried with


#: Sizes of images for backbones that must not see a map of one place of the smallest ones.
SIZES: dict[str, list[int]] = {"invpt": [128, 64]}  # halves the deepest map of stride 32

#: Settings that make a backbone small which has no width, and those that it needs by itself.
NARROW: dict[str, dict[str, Any]] = {
    "atrc": {"channels": 8, "window": 3, "labels": 4},
    "cgc": {"inputs": 3},
    "mmoe": {"inputs": 3},
    "ple": {"inputs": 3},
    "invpt": {"channels": 8, "preliminary": 4},
    "mlore": {"channels": 8, "ranks": [1, 2], "chosen": 1, "task_rank": 1, "grid": [2, 2]},
    "mtformer": {"channels": 8, "heads": 2, "window": 2, "stride": 4},
    "pad-net": {"channels": 8},
    "timm": {"model": "test_resnet"},
    "transformers": {
        "model": "resnet",
        "config": {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    },
    "transformers-text": {
        "model": "bert",
        "config": {
            "vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16,
        },
    },
}  # fmt: skip
#: Backbones inside others, with the settings that make them small.
INSIDE: dict[str, dict[str, Any]] = {
    "unet": {"width": 0.03125, "decoder": "none"},
    # With four channels, torch's gradients corrupt memory on processors without AVX-512.
    "resnet": {"depth": 18, "width": 0.125, "pyramid": True},
    "timm": NARROW["timm"],
}


def setting_inside(backbone: str) -> str | None:
    """The setting of a backbone that is another one."""
    settings = settings_of(PLUGINS.get("backbones", backbone).load())
    marked = [s.name for s in settings if nested_in(s.annotation) == Nested("backbones")]
    return marked[0] if marked else None


def outer_of(combination: Combination) -> Combination:
    """The combination without the backbone inside."""
    return attrs.evolve(combination, backbone=combination.backbone.partition(" over ")[0])


OVER = [
    f"{outer} over {inner}"
    for outer in AXES["backbone"]
    if setting_inside(outer)
    for inner in INSIDE
    if inner in AXES["backbone"] and (outer, inner) not in IMPOSSIBLE_INSIDE
]
POSSIBLE_OVER = [
    combination
    for chosen in product(OVER, *[values for axis, values in AXES.items() if axis != "backbone"])
    if not {*pairs_of(combination := Combination(*chosen)), *pairs_of(outer_of(combination))}
    & IMPOSSIBLE
]
COVER_OVER = covering(POSSIBLE_OVER, pairs_of)
# The first of each outer backbone, every time over another one.
EACH_OVER = [
    next(c for c in COVER_OVER if c.backbone == over[number % len(over)])
    for number, over in enumerate(
        [name for name in OVER if name.startswith(f"{outer} over ")]
        for outer in dict.fromkeys(name.split(" over ")[0] for name in OVER)
    )
]


def required(kind: str, name: str, tasks: Sequence[str]) -> dict[str, Any]:
    """Values of the settings that have no default."""
    inner = {"name": "unet", **INSIDE["unet"]}
    residual = {"name": "resnet", **INSIDE["resnet"]}
    known = {
        "inputs": 3,
        "main": tasks[0],
        "weights": {tasks[0]: 2.0},
        "backbone": inner,
        "encoder": residual,
        "optimizer": {"name": "sgd", "lr": 0.1},
    }
    settings = settings_of(PLUGINS.get(kind, name).load())
    needed = [setting.name for setting in settings if setting.default is REQUIRED]
    return {setting: known[setting] for setting in needed}


def sampler_of(optimizer: str) -> str:
    """The one that the methods with this optimizer need; if none, that of plain training."""
    methods = [component.spec for component in PLUGINS.all("methods")]
    needed = {
        other.partition("/")[2]
        for spec in methods
        if isinstance(spec, MethodSpec) and f"optimizers/{optimizer}" in spec.requires
        for other in spec.requires
        if other.startswith("episode-samplers/")
    }
    return next(iter(needed), "joint")


def optimizer_table(name: str, tasks: Sequence[str], lr: float) -> dict[str, Any]:
    """An optimizer with a learning rate, or one around another that has it."""
    table = {"name": name, **required("optimizers", name, tasks)}
    if "optimizer" in table:
        return table | {"optimizer": {**table["optimizer"], "lr": lr}}
    return table | {"lr": lr}


def backbone_table(name: str, tasks: Sequence[str]) -> dict[str, Any]:
    """A small backbone, or one over another."""
    outer, _, inner = name.partition(" over ")
    table = {"name": outer, **required("backbones", outer, tasks)}
    if inner:
        # Over another one, a backbone does not read the input itself.
        table |= {name: v for name, v in NARROW.get(outer, {}).items() if name != "inputs"}
        return table | {str(setting_inside(outer)): {"name": inner, **INSIDE[inner]}}
    settings = {setting.name for setting in settings_of(PLUGINS.get("backbones", name).load())}
    if "width" in settings and "inputs" not in settings:
        return table | {"width": 0.03125}
    return table | NARROW.get(name, {})


def configuration(combination: Combination, place: Path) -> RunConfig:
    outer, _, inner = combination.backbone.partition(" over ")
    settings = {setting.name for setting in settings_of(PLUGINS.get("backbones", outer).load())}
    kind = PLUGINS.get("backbones", outer).load().input_kind
    # One that reads vectors of so many values may read the maps of another one instead.
    reads_rows = ("inputs" in settings and not inner) or kind == "tokens"
    tasks = VECTORS if reads_rows else IMAGES
    data: dict[str, Any] = {"name": "rooms", "size": SIZES.get(outer, [64, 32])}
    if reads_rows:
        (place / "rows.csv").write_text(ROWS)
        targets = {
            "colour": {"kind": "classification", "column": "colour", "classes": list("rgb")},
            "shape": {"kind": "classification", "column": "shape", "classes": list("os")},
            "weight": {"kind": "regression", "column": "weight"},
        }
        data = {"name": "tabular", "root": str(place), "file": "rows.csv", "targets": targets}
        if kind == "tokens":
            data |= {"name": "texts", "text": "a"}
    # Two steps, or as many as a step needs independent batches.
    balancer = PLUGINS.get("balancers", combination.balancer).load()
    steps = max(2, balancer(**required("balancers", combination.balancer, tasks)).batches)
    # Large, so that rounding eats no update of a balancer whose directions are short; what adapters
    # learn is multiplied.
    rate = 0.01 if outer == "lora" else 0.1
    values = {
        "device": "cpu",
        "tasks": list(tasks),
        "data": {**data, "train": 2 * steps, "val": 2, "workers": 0, "labels": combination.labels},
        "model": {"backbone": backbone_table(combination.backbone, tasks)},
        "balancer": {
            "name": combination.balancer,
            **required("balancers", combination.balancer, tasks),
        },
        "optimizer": optimizer_table(combination.optimizer, tasks, rate),
        "episodes": {"name": sampler_of(combination.optimizer)},
        "training": {"steps": steps, "batch_size": 2},
    }
    return resolve(PLUGINS, [], [Layer("test", values)])


# What a step may and must move


@attrs.define
class Watched(Optimizer):
    """An optimizer under observation, and how many steps it took."""

    inner: Optimizer
    steps: int = 0

    def step(self, learner: Learner, plan: LoadedPlan) -> StepReport:
        may, must = reached(learner, plan)
        own = {f"model.{name}" for name in own_parameters(learner)}
        if alone := {id(p) for p in learner.model.backbone.learn_alone()}:
            resting = {name for name, p in learner.named_parameters() if id(p) not in alone}
            may, must = may - resting, must - resting
        before = {name: p.detach().clone() for name, p in learner.named_parameters()}
        report = self.inner.step(learner, plan)
        assert report.skipped is None
        assert report.losses and all(map(math.isfinite, report.losses.values()))
        weights = report.balancing.weights
        # The balancer says that the trunk stays where it is; or it leaves out a task, which may be
        # the only one that runs a part of it, where tasks have ways of their own.
        backbone = learner.model.backbone
        routes = bool(backbone.current_values()) or "experts." in str([*backbone.state_dict()])
        if weights and not (all if routes else any)(weights.values()):
            must &= own
        now = dict(learner.named_parameters())
        moved = {name for name, value in before.items() if not torch.equal(value, now[name])}
        assert moved <= may, f"{sorted(moved - may)} moved, but no loss of the step reaches them"
        assert must <= moved, f"{sorted(must - moved)} have a gradient, but did not move"
        assert all(bool(p.isfinite().all()) for p in now.values())
        self.steps += 1
        return report

    def reset_state(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.inner.reset_state(parameters)

    @property
    def reevaluates(self) -> bool:
        return self.inner.reevaluates

    @property
    def separates_batches(self) -> bool:
        return self.inner.separates_batches

    def after_evaluation(self, metrics: MetricValues) -> None:
        self.inner.after_evaluation(metrics)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)


def own_parameters(learner: Learner) -> set[str]:
    """Names of those that belong to single tasks."""
    model = learner.model
    own = {id(p) for task in model.tasks for p in model.task_parameters(task)}
    return {name for name, p in model.named_parameters() if id(p) in own}


def reached(learner: Learner, plan: LoadedPlan) -> tuple[set[str], set[str]]:
    """Parameters that a loss of the step reaches, and those that it pulls at beyond rounding."""
    may: set[str] = set()
    sums: dict[str, torch.Tensor] = {}  # gradients of several batches may cancel
    with torch.random.fork_rng():  # dropout is that of the step, batch after batch
        for batch, tasks, counts in judged(plan):
            found = gradients(learner, batch, tasks)
            may |= set(found)
            for name, gradient in found.items() if counts else ():
                sums[name] = sums[name] + gradient if name in sums else gradient
    must: set[str] = set()
    length = math.hypot(*(float(g.norm()) for g in sums.values()))
    for name, gradient in sums.items():
        # What is left of a gradient that is zero, such as of a bias before batch norm.
        rounding = float(gradient.norm()) < 1e-6 * length
        # A balancer may take all of it down to length 1.
        value, step = learner.get_parameter(name).detach(), 1e-3 * gradient / max(1.0, length)
        if not rounding and not torch.equal(value - step, value):
            must.add(name)
    return may, must


def judged(plan: LoadedPlan) -> Iterator[tuple[Batch, tuple[str, ...], bool]]:
    """Batches of the episodes with their tasks, and whether the update is made of their losses."""
    for episode in plan.episodes:
        batches = [episode.support, *([] if episode.query is None else [episode.query])]
        for number in batches:
            yield plan.batches[number], episode.tasks, number == batches[-1]


def gradients(learner: Learner, batch: Batch, tasks: Sequence[str]) -> Mapping[str, torch.Tensor]:
    """Of the sum of the balanced losses, by the names of the parameters it reaches."""
    random = learner.context.generator
    state = random.get_state() if random else None
    found = learner.losses_at({}, batch, tasks)
    if random and state is not None:
        random.set_state(state)
    terms = [*found.balanced.values(), *found.cross.values()]
    if not terms:
        return {}
    named = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    total = torch.stack(terms).sum()
    rows = torch.autograd.grad(total, [*named.values()], allow_unused=True)
    return {name: g for name, g in zip(named, rows, strict=True) if g is not None}


@attrs.frozen
class Watching:
    """What makes the watched optimizer of a run."""

    chosen: Chosen
    made: list[Watched] = attrs.field(factory=list)

    @property
    def component(self) -> Component:
        return self.chosen.component

    def make(self, learner: Learner) -> Watched:
        self.made.append(Watched(self.chosen.make(learner)))
        return self.made[-1]


@contextmanager
def built(config: RunConfig, place: Path) -> Iterator[Session]:
    """A run before its first step.

    Raises:
        UsageError: the combination cannot work.
    """
    directory = RunDirectory(str(place / "run"), resume=False)
    try:
        session = Session(config, directory, SilentDisplay())
        check(session)
        directory.open_metrics(0)
        yield session
    finally:
        directory.close()


def train(combination: Combination, place: Path) -> None:
    config = configuration(combination, place)
    watching = Watching(config.optimizer)
    with built(attrs.evolve(config, optimizer=watching), place) as session:
        Training(session).run()
    (watched,) = watching.made
    assert watched.steps == session.progress.step >= 2


@pytest.mark.parametrize("combination", EACH, ids=str)
def test_each_trains(combination: Combination, tmp_path: Path) -> None:
    train(combination, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("combination", [c for c in COVER if c not in EACH], ids=str)
def test_a_pair_trains(combination: Combination, tmp_path: Path) -> None:
    train(combination, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("combination", [c for c in POSSIBLE if c not in TRIED], ids=str)
def test_a_combination_trains(combination: Combination, tmp_path: Path) -> None:
    train(combination, tmp_path)


@pytest.mark.parametrize("combination", EACH_OVER, ids=str)
def test_each_trains_over_another(combination: Combination, tmp_path: Path) -> None:
    train(combination, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("combination", [c for c in COVER_OVER if c not in EACH_OVER], ids=str)
def test_a_pair_trains_over_another(combination: Combination, tmp_path: Path) -> None:
    train(combination, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", OVER)
def test_cross_task_losses_train_over_another(name: str, tmp_path: Path) -> None:
    pytest.importorskip("mtlcore_mtpsl", reason="mtlcore-plugin-mtpsl is not installed")
    values = {
        "device": "cpu",
        "tasks": list(IMAGES),
        "data": {
            "name": "rooms", "size": [64, 32], "train": 4, "val": 2, "workers": 0,
            "labels": "one", "augment": {"flip": True},
        },
        "model": {"backbone": backbone_table(name, IMAGES)},
        "cross_task": [{"name": "mtpsl"}],
        "training": {"steps": 2, "batch_size": 2},
    }  # fmt: skip
    with built(resolve(PLUGINS, [], [Layer("test", values)]), tmp_path) as session:
        Training(session).run()
        assert session.progress.step == 2


#: Images that are larger than the least that a program takes whose sizes vary.
EXPORTED: dict[str, list[int]] = {"invpt": [128, 192]}
#: Backbones that are written for one size only: torch.export does not follow windows of InvPT's
#: attention through all, and ONNX has no words for sizes that MLoRE and MTFormer compute.
ONE_SIZE = {"torch-export": {"invpt"}, "onnx": {"invpt", "mlore", "mtformer"}}


@pytest.mark.slow
@pytest.mark.parametrize("exporter", names("exporters"))
@pytest.mark.parametrize("name", [*AXES["backbone"], *(c.backbone for c in EACH_OVER)])
def test_each_can_be_exported(
    name: str, exporter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a program whose batch varies, and whose sizes do but where a backbone is listed."""
    outer = name.partition(" over ")[0]
    monkeypatch.setitem(SIZES, outer, EXPORTED.get(outer, [64, 96]))
    # An untrained network's vectors may be so short that normals magnify what rounding leaves.
    monkeypatch.setattr("mtlcore.deployment.checking.TOLERANCE", 1e-2)
    config = configuration(Combination(name, "equal", "adamw", "full"), tmp_path)
    torch.manual_seed(0)
    trained = Trained(config, build_learner(config).eval(), torch.device("cpu"))
    done = export_run(trained, PLUGINS.get("exporters", exporter), str(tmp_path / "program"))
    assert {*done.fixed} == ({"height", "width"} if outer in ONE_SIZE[exporter] else set())
    assert done.inputs[0].shape[0] == "batch"
    assert [info.name for info in done.outputs] == [task.name for task in config.tasks]


def test_every_pair_is_tried_or_listed() -> None:
    tried = {pair for combination in COVER for pair in pairs_of(combination)}
    axes = [[(axis, name) for name in values] for axis, values in AXES.items()]
    every = {
        frozenset(pair) for one, other in combinations(axes, 2) for pair in product(one, other)
    }
    assert tried | IMPOSSIBLE == every
    assert not tried & IMPOSSIBLE
    assert len(COVER) < len(POSSIBLE) / 4


@pytest.mark.parametrize(("options", "reason"), REFUSED.items())
def test_what_is_listed_is_refused_before_the_first_step(
    options: str, reason: str, tmp_path: Path
) -> None:
    words = shlex.split(options)
    pairs = list(zip(words[::2], words[1::2], strict=True))
    methods = [value for option, value in pairs if option == "--plugin"]
    changes = [value for option, value in pairs if option == "--set"]
    small = ["data.train=12", "data.val=2", "data.size=64x32", "data.workers=0", "device=cpu",
             "training.batch_size=2"]  # fmt: skip
    with (
        pytest.raises(UsageError) as refused,
        built(resolve(PLUGINS, methods, [set_layer([*small, *changes])]), tmp_path),
    ):
        pass
    assert reason in str(refused.value)


@attrs.define
class Spoilt:
    """Adam, after whose steps a parameter is changed by hand."""

    wrong: Callable[[Learner, Mapping[str, torch.Tensor]], None]

    def step(self, learner: Learner, plan: LoadedPlan) -> StepReport:
        before = {name: p.detach().clone() for name, p in learner.named_parameters()}
        report = adam(learner).step(learner, plan)
        with torch.no_grad():
            self.wrong(learner, before)
        return report


def test_the_watch_notices() -> None:
    trunk, head = "model.backbone.trunk.0.weight", "model.heads.task_depth.output.weight"
    tasks = tuple(task.name for task in TINY_TASKS)
    plan = LoadedPlan((tiny_batch(absent=["depth"]),), (Episode(tasks, support=0),))
    cases: list[tuple[Callable[[Learner, Mapping[str, torch.Tensor]], object], str]] = [
        (lambda learner, before: learner.get_parameter(head).mul_(0.9), "no loss .* reaches"),
        (lambda learner, before: learner.get_parameter(trunk).copy_(before[trunk]), "did not move"),
    ]
    for wrong, message in cases:
        learner = tiny_learner()
        with pytest.raises(AssertionError, match=message):
            Watched(Spoilt(wrong)).step(learner, plan)
    learner = tiny_learner()
    Watched(adam(learner)).step(learner, plan)


def test_a_batch_without_labels_is_nothing_to_balance() -> None:
    tasks = [task.name for task in TINY_TASKS]
    for component in PLUGINS.all("balancers"):
        name = component.spec.name
        balancer = component.load()(**required("balancers", name, tasks))
        learner = tiny_learner([balancer], data=[tiny_batch()])
        found = learner(tiny_batch(absent=tasks), tasks)
        assert found.raw == found.balanced == {}, name
