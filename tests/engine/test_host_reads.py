"""What a step on a GPU waits for, and that waiting once changes nothing.

No test needs a card: a step of tensors without values (torch's device "meta") does all that a step
on a GPU does but compute, and reading a value from there is noticed. That reading late changes no
result is shown on the processor, where the same steps are taken both ways.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import adam

import mtlcore
from mtlcore.balancing import HostReads
from mtlcore.data import Batch
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.learner import Learner
from mtlcore.optimizers import Optimizer, StepReport
from mtlcore.plugins import Plugins
from mtlcore.standard.optimizers import adam as make_adam
from mtlcore.testing import TINY_TASKS, tiny_batch, tiny_learner

READS = ("tolist", "item", "cpu", "numpy", "__float__", "__bool__", "__int__")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where values were read from tensors that have none; a reader gets the unit matrix, or 0."""
    found: list[str] = []

    def noticed(name: str) -> Callable[..., Any]:
        read = getattr(Tensor, name)

        def noticing(self: Tensor, *arguments: Any, **named: Any) -> Any:
            if self.device.type != "meta":
                return read(self, *arguments, **named)
            frames = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack()]
            found.append(next(f for f in reversed(frames) if "/mtlcore/" in f))
            values = torch.zeros(self.shape, dtype=self.dtype)
            return values if name == "cpu" else read(values, *arguments, **named)

        return noticing

    for name in READS:
        monkeypatch.setattr(Tensor, name, noticed(name))
    # It knows no fused step on this device.
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
    return found


def balancers(name: str) -> list[Any]:
    return [] if name == "equal" else [mtlcore.create("balancers", name)]


def plan_of(*batches: Batch) -> LoadedPlan:
    tasks = tuple(batches[0].targets)
    return LoadedPlan(batches, tuple(Episode(tasks, n) for n in range(len(batches))))


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("equal", 1), ("uncertainty", 1), ("dwa", 1), ("rlw", 1),
        ("unit-norm", 1), ("nash-mtl", 1), ("pcgrad", 1), ("cagrad", 1), ("mgda", 1),
        # It makes the gradient itself, which is looked at afterwards.
        ("graddrop", 2),
    ],
)  # fmt: skip
def test_a_step_waits_once(
    name: str, most: int, parts: int, clip: float | None, reads: list[str]
) -> None:
    learner = tiny_learner(balancers(name)).to("meta").train()
    optimizer = make_adam(learner, clip=clip)
    device = torch.device("meta")
    for number in range(2):
        batches = [tiny_batch(4, seed=2 * number + part).to(device) for part in range(parts)]
        before = len(reads)
        report = optimizer.step(learner, plan_of(*batches))
        assert report.skipped is None
        assert len(reads) - before <= most, reads[before:]


# Reading late, on the processor


def _late(optimizer: Optimizer) -> Optimizer:
    optimizer._update._reads = HostReads(at_once=False)  # type: ignore[attr-defined]
    return optimizer


@pytest.fixture(params=["equal", "uncertainty", "nash-mtl", "unit-norm", "graddrop", "db-mtl"])
def pair(request: pytest.FixtureRequest) -> Iterator[Callable[..., list[tuple[Learner, Any]]]]:
    """The same learner and optimizer twice, of which the second reads late."""

    def make(**settings: Any) -> list[tuple[Learner, Any]]:
        made = []
        for late in (False, True):
            learner = tiny_learner(balancers(request.param)).train()
            learner.balancing.prepare([*learner.model.tasks.values()])
            optimizer = make_adam(learner, lr=0.01, **settings)
            made.append((learner, _late(optimizer) if late else optimizer))
        return made

    yield make


def taken(learner: Learner, optimizer: Any, plans: list[LoadedPlan]) -> list[StepReport]:
    reports = []
    for number, plan in enumerate(plans):
        learner.context.step = number
        learner.context.generator = torch.Generator().manual_seed(number)
        reports.append(optimizer.step(learner, plan))
    return reports


def assert_alike(both: list[tuple[Learner, Any]], plans: list[LoadedPlan], exact: bool) -> None:
    (learner, optimizer), (other, late) = both
    told = [taken(learner, optimizer, plans), taken(other, late, plans)]
    for one, two in zip(*told, strict=True):
        assert one.skipped == two.skipped
        assert one.balancing.status == two.balancing.status
        if exact:
            assert str(one.losses) == str(two.losses)  # NaN is like NaN
            assert (one.early, str(one.cross)) == (two.early, str(two.cross))
            assert one.balancing.weights == two.balancing.weights
    for (name, value), twin in zip(
        learner.state_dict().items(), other.state_dict().values(), strict=True
    ):
        if isinstance(value, Tensor):
            if exact:
                assert torch.equal(value, twin), name
            else:
                torch.testing.assert_close(value, twin, rtol=1e-5, atol=1e-6)


def broken(batch: Batch, where: str) -> Batch:
    if where == "inputs":
        batch.inputs[1] = float("nan")
    return batch


def test_nothing_changes(pair: Callable[..., Any]) -> None:
    lacking = tiny_batch(4, seed=7)
    lacking.valid["depth"][:] = False
    lacking.count["depth"] = 0
    plans = [
        plan_of(tiny_batch(4, seed=0)),
        plan_of(tiny_batch(3, seed=1), tiny_batch(4, seed=2)),
        plan_of(broken(tiny_batch(4, seed=3), "inputs")),
        plan_of(tiny_batch(4, seed=4), broken(tiny_batch(4, seed=5), "inputs")),
        plan_of(lacking),
        plan_of(tiny_batch(4, seed=6)),
    ]
    both = pair()
    assert_alike(both, plans, exact=True)


def test_clipping_on_the_device_is_clipping(pair: Callable[..., Any]) -> None:
    plans = [plan_of(tiny_batch(4, seed=number)) for number in range(4)]
    assert_alike(pair(clip=0.01), plans, exact=False)
    assert_alike(pair(clip=1e6), plans, exact=True)


@pytest.mark.parametrize("of", ["a head", "the trunk"])
def test_a_gradient_that_is_not_finite_is_found(pair: Callable[..., Any], of: str) -> None:
    both = pair()
    for learner, _ in both:
        first = learner.model.tasks["depth"].name
        own = [*learner.model.task_parameters(first)]
        parameters = own if of == "a head" else learner.model.shared_parameters()
        parameters[-1].register_hook(lambda gradient: gradient * float("inf"))
    plans = [plan_of(tiny_batch(4, seed=number)) for number in range(2)]
    assert_alike(both, plans, exact=True)
    reports = taken(*both[1], plans)
    assert all(report.skipped and "gradient" in report.skipped for report in reports)


def test_a_loss_that_is_not_finite_does_not_lower_the_loss_scale() -> None:
    """A gradient does, as it may be too large for half precision."""
    learner = tiny_learner(balancers("nash-mtl")).train()
    optimizer: Any = _late(make_adam(learner))
    scale = optimizer._update._scale
    scale._dynamic, scale.factor = True, 8.0
    optimizer.step(learner, plan_of(broken(tiny_batch(4), "inputs")))
    assert scale.factor == 8
    learner.model.shared_parameters()[0].register_hook(lambda gradient: gradient * float("inf"))
    optimizer.step(learner, plan_of(tiny_batch(4)))
    assert scale.factor == 4


@pytest.mark.parametrize(
    ("weight", "length", "fits"),
    [
        (1.0, 1.0, True), (1e30, 1.0, True), (1e37, 1.0, True), (1e39, 1.0, False),
        (1e200, 1.0, False), (1e37, 1e-12, True), (1e39, 1e-12, False),
    ],
)  # fmt: skip
def test_weights_that_are_too_large_are_noticed(weight: float, length: float, fits: bool) -> None:
    """Rows and weights are finite, and what they add up to may not be."""
    skipped = []
    for late in (False, True):
        learner = tiny_learner(balancers("unit-norm")).train()
        optimizer: Any = make_adam(learner)
        finisher: Any = learner.balancing.finisher
        finisher.weights = lambda gramian, context=None: torch.full(
            (2, len(gramian)), weight, dtype=torch.float64
        )
        for parameter in learner.parameters():
            parameter.register_hook(lambda gradient: gradient * length)
        report = (_late(optimizer) if late else optimizer).step(learner, plan_of(tiny_batch(4)))
        assert all(bool(p.isfinite().all()) for p in learner.parameters())
        skipped.append(report.skipped)
    assert skipped[0] == skipped[1]
    assert (skipped[0] is None) == fits


# What is read


def test_values_come_in_the_order_in_which_they_were_asked_for() -> None:
    late, told = HostReads(at_once=False), []
    late.ask(torch.tensor([1.0, 2.0]), told.append)
    late.ask(torch.empty(0), told.append)
    late.ask(torch.tensor([3.0], dtype=torch.float64), told.append)
    assert told == []
    matrix, number = late.read(torch.eye(2, dtype=torch.float64), torch.tensor(5.0))
    assert told == [[1.0, 2.0], [], [3.0]]
    assert torch.equal(matrix, torch.eye(2)) and float(number) == 5
    assert late.read() == [] and len(told) == 3
    late.ask(torch.tensor([4.0]), told.append)
    late.forget()
    late.read()
    assert len(told) == 3
    HostReads().ask(torch.tensor([6.0]), told.append)
    assert told[-1] == [6.0]


def test_one_transfer_keeps_every_digit(reads: list[str]) -> None:
    late = HostReads(at_once=False)
    late.ask(torch.zeros(3, device="meta"), lambda values: None)
    gramian = torch.zeros(4, 4, dtype=torch.float64, device="meta")
    found, flag, here = late.read(gramian, torch.zeros((), device="meta"), torch.ones(2))
    assert len(reads) == 1
    assert (found.dtype, found.shape, flag.shape) == (torch.float64, (4, 4), ())
    assert here.tolist() == [1, 1]


# No balancer mixes devices


PLUGINS = Plugins.from_environment(())
#: What needs values, or a backbone, that there are none of here.
LEFT_OUT = {
    "fixed": "needs weights",
    "gradnorm": "needs a backbone that names its last shared parameters",
    "ira": "fits bins on labels",
    "moco": "solves a problem of values of its own",
}
BALANCERS = sorted({c.spec.name for c in PLUGINS.all("balancers")} - {"equal"})


@pytest.mark.parametrize("name", BALANCERS)
def test_a_balancer_stays_on_the_device(name: str, reads: list[str]) -> None:
    """A tensor that it makes elsewhere would meet one without values, which is an error."""
    if name in LEFT_OUT:
        pytest.skip(LEFT_OUT[name])
    learner = tiny_learner(balancers(name))
    learner.balancing.prepare(TINY_TASKS, [tiny_batch(4)])
    learner.to("meta").train()
    optimizer = make_adam(learner)
    count = learner.balancing.batches
    batches = [tiny_batch(4, seed=n).to(torch.device("meta")) for n in range(count + 1)]
    tasks = tuple(batches[0].targets)
    validation = (Episode(tasks, count),) if learner.balancing.validation else ()
    plan = LoadedPlan(
        tuple(batches), tuple(Episode(tasks, n, group=n) for n in range(count)), validation
    )
    for step in range(3):
        learner.context.step = step
        learner.context.generator = torch.Generator().manual_seed(step)
        assert optimizer.step(learner, plan).skipped is None
