"""Balancers that keep a value per coordinate, and those that are told whose rows they see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import Tensor, nn

from mtlcore.balancing import (
    BalancerContext,
    Balancing,
    GradientBalancer,
    TaskGradients,
    Tentative,
)
from mtlcore.balancing import rows as rows_module
from mtlcore.config import Layer, resolve
from mtlcore.display import SilentDisplay
from mtlcore.engine import Session, Training
from mtlcore.errors import UsageError
from mtlcore.models import Transition
from mtlcore.plugins import Plugins
from mtlcore.standard.segnet import SegNet
from mtlcore.storage import RunDirectory, load_checkpoint
from mtlcore.testing.base import same

NAMES = ("a", "b", "c")


class Means(GradientBalancer):
    """Half the old mean and half the new row, for each task that is present."""

    constant_columns = True

    def __init__(self) -> None:
        super().__init__()
        self.state = Tentative()
        self.seen: list[Tensor] = []

    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        assert context is not None and context.place is None
        self.seen.append(rows.clone())
        means = 0.5 * rows
        for mean, task in zip(means, context.present, strict=True):
            old = self.state.get(task, like=mean)
            if old is not None:
                mean.add_(old, alpha=0.5)
            self.state.propose(task, mean)
        return means.sum(0)

    def after_step(self, context: BalancerContext) -> None:
        self.state.commit()

    def reset(self) -> None:
        self.state.reset()


class Phased(nn.Module):
    """Two trunks of which a step reaches one or both; a head per task."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(4, 5)
        self.heads = nn.ModuleDict({name: nn.Linear(5, 1) for name in NAMES})

    def losses(self, inputs: Tensor, tasks: dict[str, tuple[str, ...]]) -> dict[str, Tensor]:
        """Return losses by task, each through the trunks that are named."""
        trunks = {"first": self.first, "second": self.second}
        return {
            task: self.heads[task](sum(trunks[x](inputs).tanh() for x in through)).square().mean()
            for task, through in tasks.items()
        }

    def shared(self) -> list[nn.Parameter]:
        return [*self.first.parameters(), *self.second.parameters()]


# Which tasks have labels, and what their losses reach: phases, partial labels, both together.
STEPS: list[dict[str, tuple[str, ...]]] = [
    {"a": ("first",), "b": ("first",), "c": ("first",)},
    {"a": ("first", "second"), "c": ("second",)},
    {"b": ("second",)},
    {"a": ("second",), "b": ("first",)},
    {"c": ("first",), "a": ("first",)},
]


@pytest.fixture(params=["small", "large"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "large":
        monkeypatch.setattr(rows_module, "SMALL", 4)


def flat(values: list[Tensor | None], like: list[nn.Parameter]) -> Tensor:
    pairs = zip(values, like, strict=True)
    return torch.cat([(torch.zeros_like(p) if x is None else x).flatten() for x, p in pairs])


@pytest.mark.parametrize("frozen", [(), ("second",)])
def test_a_running_mean_is_that_computed_by_hand(frozen: tuple[str, ...], sizes: None) -> None:
    torch.manual_seed(0)
    model, balancer = Phased().double(), Means()
    # Frozen for the first three steps.
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    shared = model.shared()
    by_hand: dict[str, Tensor] = {}
    for number, tasks in enumerate(STEPS):
        if number == 3:
            model.requires_grad_(True)
        inputs = torch.randn(6, 4, dtype=torch.float64)
        model.zero_grad()
        losses = model.losses(inputs, tasks)
        rows = {}
        for task, loss in losses.items():
            reached = [p for p in shared if p.requires_grad]
            found = torch.autograd.grad(loss, reached, retain_graph=True, allow_unused=True)
            by_id = {id(p): g for p, g in zip(reached, found, strict=True)}
            rows[task] = flat([by_id.get(id(p)) for p in shared], shared)
        context = BalancerContext(tasks=NAMES, step=number)
        balancer.backward(losses, shared, context)
        balancer.after_step(context)
        for task, row in rows.items():
            by_hand[task] = 0.5 * row + 0.5 * by_hand.get(task, torch.zeros_like(row))
        expected = torch.stack([by_hand[task] for task in losses]).sum(0)
        kept = flat([torch.full_like(p, float(p.requires_grad)) for p in shared], shared)
        torch.testing.assert_close(flat([p.grad for p in shared], shared), kept * expected)
        for task, mean in by_hand.items():
            torch.testing.assert_close(balancer.state.get(task, mean), mean, rtol=1e-12, atol=0)
    assert {rows.shape[1] for rows in balancer.seen} == {50}


def test_what_nobody_reaches_has_a_gradient_only_where_the_answer_has_one() -> None:
    """Otherwise weight decay moves what no loss has ever reached."""
    model, balancer = Phased(), Means()
    shared = model.shared()
    for step in ({"a": ("first",)}, {"a": ("second",)}):
        model.zero_grad()
        context = BalancerContext(tasks=NAMES)
        balancer.backward(model.losses(torch.randn(3, 4), step), shared, context)
        reached = [p.grad is not None for p in shared]
        assert reached == ([True, True, False, False] if "first" in step["a"] else [True] * 4)
        balancer.after_step(context)


def test_frozen_parameters_stay() -> None:
    model, balancer = Phased(), Means()
    shared = model.shared()
    context = BalancerContext(tasks=NAMES)
    balancer.backward(model.losses(torch.randn(3, 4), {"a": ("first",)}), shared, context)
    balancer.after_step(context)
    model.first.requires_grad_(False)
    model.zero_grad()
    balancer.backward(model.losses(torch.randn(3, 4), {"a": ("second",)}), shared, context)
    assert [p.grad is not None for p in shared] == [False, False, True, True]


def test_batches_of_one_step_are_added_up_before() -> None:
    model, balancer = Phased().double(), Means()
    shared, own = model.shared(), {n: list(model.heads[n].parameters()) for n in NAMES}
    gradients = TaskGradients(shared, own)
    parts = [({"a": ("first",)}, torch.randn(3, 4)), ({"b": ("second",)}, torch.randn(3, 4))]
    for step, inputs in parts:
        gradients.collect_rows(model.losses(inputs.double(), step))
    gradients.apply(balancer, BalancerContext(tasks=NAMES, present=("a", "b")))
    (rows,) = balancer.seen
    assert rows.shape == (2, 50)
    assert not rows[0, 25:].any() and not rows[1, :25].any()
    assert rows[0, :25].any() and rows[1, 25:].any()


def test_complex_parameters_have_two_columns_a_number() -> None:
    real, pair = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2, dtype=torch.complex64))
    balancer, context = Means(), BalancerContext(tasks=NAMES)
    balancer.backward({"a": real.sum()}, [pair, real], context)
    balancer.after_step(context)
    balancer.backward({"a": (2 * pair).abs().sum()}, [pair, real], context)
    assert [rows.shape for rows in balancer.seen] == [(1, 7), (1, 7)]
    assert pair.grad is not None and pair.grad.is_complex()


def test_other_parameters_in_a_later_step_are_refused() -> None:
    model, balancer = Phased(), Means()
    context = BalancerContext(tasks=NAMES)
    step: dict[str, tuple[str, ...]] = {"a": ("first",)}
    balancer.backward(model.losses(torch.randn(3, 4), step), model.shared(), context)
    with pytest.raises(UsageError, match=r"Means keeps values for each of 50 shared numbers.* 25;"):
        balancer.backward(model.losses(torch.randn(3, 4), step), model.first.parameters())


class AtFeatures(Means):
    scope = "features"


class InParts(Means):
    granularity = "element"


@pytest.mark.parametrize(
    ("made", "words"), [(AtFeatures, "AtFeatures.*'features'"), (InParts, "InParts.*'element'")]
)
def test_where_there_are_no_constant_columns_they_are_refused(made: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Balancing([made()])
    features = torch.randn(3, 5, requires_grad=True)
    head = nn.Linear(5, 1)
    with pytest.raises(UsageError, match=words):
        made().backward({"a": head(features).sum()}, features=[features])


# In a run: a phase in the middle, parts that thaw, and going on from a checkpoint.


def session_of(folder: Path, **tables: Any) -> Session:
    values: dict[str, Any] = {
        "tasks": ["segmentation", "depth"],
        "device": "cpu",
        "data": {"train": 6, "val": 2, "size": [32, 32], "workers": 0},
        "model": {"backbone": {"width": 0.03125}},
        "training": {"epochs": 2, "batch_size": 2},
        **tables,
    }
    config = resolve(Plugins(allow=()), (), [Layer("test", values)])
    return Session(config, RunDirectory(str(folder / "run"), False), SilentDisplay())


def trained(session: Session) -> Means:
    balancer = Means()
    session.learner.balancing = Balancing([balancer])
    # What collects rows was made for another balancer.
    session.optimizer = session.config.optimizer.make(session.learner)
    session.directory.open_metrics(0)
    Training(session).run()
    session.directory.close()
    return balancer


@pytest.mark.parametrize("until", [0.5, None])
def test_columns_stay_when_parts_thaw(tmp_path: Path, until: float | None) -> None:
    session = session_of(
        tmp_path,
        model={"backbone": {"width": 0.03125}, "freeze": ["backbone.encoder.levels.0"]},
        training={"epochs": 2, "batch_size": 2, **({"freeze_until": until} if until else {})},
    )
    shared = session.learner.model.shared_parameters()
    frozen = {id(p) for p in session.learner.model.backbone.encoder.levels[0].parameters()}
    balancer = trained(session)
    assert {rows.shape[1] for rows in balancer.seen} == {sum(p.numel() for p in shared)}
    columns = torch.cat([torch.full((p.numel(),), id(p) in frozen) for p in shared])
    zero = [not bool(rows[:, columns].any()) for rows in balancer.seen]
    assert zero == ([True] * 3 + [False] * 3 if until else [True] * 6)


@pytest.mark.parametrize("reset", [False, True])
def test_a_phase_resets_the_balancer_if_it_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reset: bool
) -> None:
    entered: list[float] = []

    def at_progress(self: SegNet, fraction: float) -> Transition | None:
        if fraction < 0.5 or entered:
            return None
        entered.append(fraction)
        return Transition(reset_balancer=reset)

    monkeypatch.setattr(SegNet, "at_progress", at_progress)
    balancer = trained(session_of(tmp_path))
    rows = balancer.seen[3:] if reset else balancer.seen
    mean = torch.zeros_like(rows[0])
    for row in rows:
        mean = 0.5 * mean + 0.5 * row
    names = ("segmentation", "depth")
    found = torch.stack([balancer.state.get(n, mean) for n in names])  # type: ignore[misc]
    torch.testing.assert_close(found, mean)


PLUGIN = """
import os

from mtlcore import BalancerSpec, hookimpl


@hookimpl
def mtl_balancers():
    from mtlcore.balancing import GradientBalancer, Tentative

    class Means(GradientBalancer):
        constant_columns = True

        def __init__(self):
            super().__init__()
            self.state = Tentative()

        def combine(self, rows, context=None):
            if str(context.step) == os.environ.get("MTL_TEST_STOP"):
                raise RuntimeError("stopped on purpose")
            means = 0.5 * rows
            for mean, task in zip(means, context.present, strict=True):
                old = self.state.get(task, like=mean)
                if old is not None:
                    mean.add_(old, alpha=0.5)
                self.state.propose(task, mean)
            return means.sum(0)

        def after_step(self, context):
            self.state.commit()

    yield BalancerSpec(name="means", target=Means)
"""
SETTINGS = [
    "tasks=['segmentation', 'depth']", "data.train=6", "data.val=2", "data.size=32x32",
    "data.labels=one", "data.workers=0", "model.backbone.width=0.03125", "balancer.name=means",
    "model.freeze=['backbone.encoder.levels.0']", "training.freeze_until=0.5", "training.epochs=4",
    "training.batch_size=2", "training.threads=1", "device=cpu",
]  # fmt: skip


def test_a_run_goes_on_bit_for_bit(
    tmp_path: Path, mtl: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve steps with partial labels, the last six of which reach more parameters."""
    monkeypatch.chdir(tmp_path)
    Path("means.py").write_text(PLUGIN)
    run = ["run", "--plugin=means.py", *(f"--set={setting}" for setting in SETTINGS)]
    assert mtl(*run, "--out=whole").exit_code == 0
    whole = load_checkpoint(Path("whole/checkpoints/last.safetensors"))
    for stop in ("5", "10"):
        stopped = mtl(*run, f"--out={stop}", env={"MTL_TEST_STOP": stop})
        assert stopped.exit_code != 0 and "stopped on purpose" in repr(stopped.exception)
        found = mtl(*run, f"--out={stop}", "--resume")
        assert found.exit_code == 0, found.stderr
        again = load_checkpoint(Path(stop) / "checkpoints" / "last.safetensors")
        for part in ("learner", "optimizer", "random"):
            assert same(whole[part], again[part]), (stop, part)


# Whose rows a balancer sees


class Places(GradientBalancer):
    granularity = "parameter"

    def __init__(self, scope: Any = "shared") -> None:
        super().__init__()
        self.scope = scope
        self.found: list[tuple[int, tuple[int, ...], Tensor]] = []

    def combine(self, rows: Tensor, context: BalancerContext | None = None) -> Tensor:
        assert context is not None and context.place is not None
        place = context.place
        assert rows.shape[1] == place.values.numel() and not place.values.requires_grad
        self.found.append((place.number, tuple(place.values.shape), place.values.clone()))
        return rows.sum(0)


def test_numbers_of_parameters_stay_whatever_is_reached_or_frozen() -> None:
    model, balancer = Phased(), Places()
    shared, context = model.shared(), BalancerContext(tasks=NAMES)
    through: list[tuple[str, ...]] = [("first", "second"), ("second",)]
    for number, reached in enumerate(through):
        model.first.weight.requires_grad_(number == 0)
        balancer.backward(model.losses(torch.randn(3, 4), {"a": reached}), shared, context)
        assert context.place is None
    assert [number for number, _, _ in balancer.found] == [0, 1, 2, 3, 2, 3]
    for number, shape, values in balancer.found:
        assert shape == tuple(shared[number].shape) and torch.equal(values, shared[number])


def test_maps_at_the_features_have_values() -> None:
    trunk, balancer = nn.Linear(4, 5), Places("features")
    features = trunk(torch.randn(3, 4)).relu()
    heads = {name: nn.Linear(5, 1) for name in NAMES}
    losses = {name: head(features).square().mean() for name, head in heads.items()}
    total = torch.stack([*losses.values()]).sum()
    (expected,) = torch.autograd.grad(total, trunk.weight, retain_graph=True)
    balancer.backward(losses, trunk.parameters(), features=[features])
    torch.testing.assert_close(trunk.weight.grad, expected)
    ((number, shape, values),) = balancer.found
    assert (number, shape) == (0, (3, 5)) and torch.equal(values, features.detach())


@pytest.mark.parametrize("scope", ["shared", "features"])
@pytest.mark.parametrize("how", ["infinite", "nan"])
def test_no_balancer_sees_gradients_that_are_not_finite(scope: Any, how: str, sizes: None) -> None:
    """Otherwise one that solves a problem stops the run where a step should be skipped."""
    trunk, head = nn.Linear(4, 5), nn.Linear(5, 1)
    features = trunk(torch.randn(3, 4))
    losses = {name: head(features).square().mean() for name in NAMES}
    # 0, with the slope of a root there; times the 0 of an absolute value, NaN.
    nothing = features[1, 2] - features[1, 2].detach()
    losses["b"] = losses["b"] + (nothing if how == "infinite" else nothing.abs()).sqrt()
    balancer, shared = Places(scope), [*trunk.parameters(), *head.parameters()]
    result = balancer.backward(losses, shared, features=[features])
    assert (result.status, result.problem) == ("not finite", "the gradient of b is not finite")
    assert not balancer.found and all(p.grad is None for p in shared)
