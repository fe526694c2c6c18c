"""Gradients with target cosines: golden vectors, the printed algorithm, state, and edges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtlcore.balancing import BalancerContext
from mtlcore.errors import UsageError
from mtlcore.tasks import Task
from mtlcore_gradvac import balancer as module
from mtlcore_gradvac.balancer import GradVac, LayerGradVac, gradvac, random_orders, vaccinate

Array = NDArray[np.float64]
NAMES = ("task0", "task1", "task2")


def tasks(names: Sequence[str] = NAMES) -> list[Task]:
    return [Task(name=name, kind="depth", channels=1) for name in names]


def prepared(**settings: Any) -> Any:
    balancer = gradvac(**settings)
    balancer.prepare(tasks())
    return balancer


def context(step: int = 0, present: Sequence[str] = NAMES) -> BalancerContext:
    return BalancerContext(
        tasks=NAMES,
        present=tuple(present),
        step=step,
        generator=torch.Generator().manual_seed(step),
    )


def printed(
    rows: Array, orders: Sequence[Sequence[int]], targets: Array, beta: float
) -> tuple[Array, Array]:
    """The paper's algorithm on gradients."""
    left, moved = rows.copy(), targets.copy()
    for i, order in enumerate(orders):
        for j in order:
            h, g = left[i], rows[j]
            c = h @ g / np.linalg.norm(h) / np.linalg.norm(g)
            t = targets[i, j]
            if c < t:
                up = np.linalg.norm(h) * (t * np.sqrt(1 - c**2) - c * np.sqrt(1 - t**2))
                left[i] = h + up / (np.linalg.norm(g) * np.sqrt(1 - t**2)) * g
            moved[i, j] = (1 - beta) * t + beta * c
    return left, moved


def test_golden_visits(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    arrays = golden_arrays("balancers.npz")
    for case in golden("balancers.json")["cases"]:
        rows, expected = arrays[case["matrix"]], case["gradvac"]
        found, moved = vaccinate(
            (rows @ rows.T).tolist(), case["orders"], expected["phi_target"], expected["beta"]
        )
        # Gradients that differ by 1e-6 have a cosine of which a Gramian knows half the digits.
        tolerance = 1e-6 if case["variant"] == "neardup" else 1e-11
        direction = np.sum(found, axis=0) @ rows
        best = np.asarray(expected["weights_sum"]) @ rows
        assert np.linalg.norm(direction - best) <= tolerance * np.linalg.norm(best), case["id"]
        off = ~np.eye(len(rows), dtype=bool)
        assert np.array(moved)[off] == pytest.approx(
            np.array(expected["phi_after"])[off], abs=1e-11
        )


@pytest.mark.parametrize("number", [0, 1])
def test_golden_sequence(
    number: int,
    golden: Callable[[str], Any],
    golden_arrays: Callable[[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sequence, arrays = golden("golden_more.json")["sequence"], golden_arrays("golden_more.npz")
    case = sequence["gradvac"][number]
    orders: Iterator[Any] = iter(sequence["orders"])
    monkeypatch.setattr(module, "random_orders", lambda count, generator: next(orders))
    balancer = prepared(beta=case["beta"])
    directions = arrays[f"seq_gradvac_dir_beta{case['beta']}"]
    for step, (rows, best, recorded) in enumerate(
        zip(arrays["seq_J"], directions, case["steps"], strict=True)
    ):
        weights = balancer.weights(torch.from_numpy(rows @ rows.T), context=context(step)).numpy()
        assert weights == pytest.approx(recorded["weights_sum"], rel=1e-11)
        assert weights @ rows == pytest.approx(best, rel=1e-9)
        balancer.after_step(context(step))
        found = np.array(balancer.targets.get("whole", NAMES))
        assert found == pytest.approx(np.array(recorded["phi_after"]), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("seed", range(20))
def test_coefficients_are_the_printed_algorithm(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((4, 20)) * 10 ** random.uniform(-2, 2, (4, 1))
    targets, beta = random.uniform(-0.5, 0.9, (4, 4)), random.uniform(0, 1)
    orders = random_orders(4, torch.Generator().manual_seed(seed))
    found, moved = vaccinate((rows @ rows.T).tolist(), orders, targets.tolist(), beta)
    changed, expected = printed(rows, orders, targets, beta)
    assert np.array(found) @ rows == pytest.approx(changed, rel=1e-9, abs=1e-9)
    assert np.array(moved) == pytest.approx(expected, abs=1e-11)


def test_the_cosine_becomes_the_target() -> None:
    rows = np.random.default_rng(0).standard_normal((2, 10))
    found, _ = vaccinate((rows @ rows.T).tolist(), [[1], [0]], [[0, 0.8], [0.8, 0]], 0.1)
    changed = np.array(found) @ rows
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(changed, rows[::-1], strict=True)
    ]
    assert cosines == pytest.approx([0.8, 0.8])


def test_with_targets_of_zero_two_tasks_are_projected() -> None:
    """As in PCGrad, whose targets stay 0."""
    rows = np.array([[1.0, 0.0], [-1.0, 1.0]])
    weights = gradvac(beta=0.0).weights(torch.from_numpy(rows @ rows.T)).numpy()  # type: ignore[attr-defined]
    assert weights @ rows == pytest.approx(np.array([0.5, 0.5]) + np.array([0.0, 1.0]))


def test_absent_tasks_keep_their_targets() -> None:
    balancer, rows = prepared(beta=0.5), np.random.default_rng(0).standard_normal((3, 8))
    balancer.weights(torch.from_numpy(rows @ rows.T), context=context())
    balancer.after_step(context())
    before = np.array(balancer.targets.get("whole", NAMES))
    pair = rows[[2, 0]]
    there = context(1, ["task2", "task0"])
    balancer.weights(torch.from_numpy(pair @ pair.T), context=there)
    assert np.array_equal(before, balancer.targets.get("whole", NAMES))  # not taken yet
    balancer.after_step(there)
    after = np.array(balancer.targets.get("whole", NAMES))
    moved = np.zeros((3, 3), dtype=bool)
    moved[0, 2] = moved[2, 0] = True
    assert ((before != after) == moved).all()


def test_tasks_may_join_and_come_back_in_another_order() -> None:
    balancer, rows = prepared(beta=0.5), np.random.default_rng(0).standard_normal((3, 8))
    balancer.weights(torch.from_numpy(rows @ rows.T), context=context())
    balancer.after_step(context())
    kept = balancer.targets.get("whole", NAMES)
    other = gradvac()
    assert isinstance(other, GradVac)
    other.prepare(tasks(["new", "task2", "task0", "task1"]))
    other.load_state_dict(balancer.state_dict())
    assert other.targets.get("whole", NAMES) == kept
    assert other.targets.get("whole", ["new", "task0"]) == [[0.0, 0.0], [0.0, 0.0]]


class Network(nn.Module):
    """Two layers, of which a step may leave one out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
        self.heads = nn.ModuleDict({name: nn.Linear(4, 1) for name in NAMES[:2]})

    def losses(self, inputs: Tensor, both: bool) -> dict[str, Tensor]:
        hidden = self.second(inputs).tanh() + (self.first(inputs).tanh() if both else 0)
        goals = zip(self.heads.items(), (2.0, -2.0), strict=True)
        return {name: (head(hidden) - goal).square().mean() for (name, head), goal in goals}


def test_each_parameter_has_its_own_targets() -> None:
    """Two tasks have but one order, so that every step is known by hand."""
    torch.manual_seed(0)
    network, balancer = Network().double(), prepared(granularity="parameter", beta=0.3)
    assert isinstance(balancer, LayerGradVac)
    shared = [network.first.weight, network.second.weight]
    targets = [np.zeros((2, 2)), np.zeros((2, 2))]
    for step, both in enumerate([True, False, True, True]):
        network.zero_grad()
        losses = network.losses(torch.randn(5, 3, dtype=torch.float64), both)
        expected: list[Array | None] = []
        for number, parameter in enumerate(shared):
            if number == 0 and not both:
                expected.append(None)
                continue
            each = [
                torch.autograd.grad(x, parameter, retain_graph=True)[0] for x in losses.values()
            ]
            rows = torch.stack([x.flatten() for x in each]).numpy()
            changed, targets[number] = printed(rows, [[1], [0]], targets[number], 0.3)
            expected.append(changed.sum(0))
        there = context(step, NAMES[:2])
        balancer.backward(losses, shared, there)
        balancer.after_step(there)
        for number, kept in enumerate(targets):
            found = balancer.targets.get(str(number), NAMES[:2])
            assert np.array(found) == pytest.approx(kept, abs=1e-11)
        for parameter, best in zip(shared, expected, strict=True):
            if best is None:
                assert parameter.grad is None
            else:
                assert parameter.grad is not None
                assert parameter.grad.flatten().numpy() == pytest.approx(best, rel=1e-10)


def test_edges() -> None:
    first, second = np.random.default_rng(5).standard_normal((2, 10))
    orders = [[1], [0]]

    def weights(rows: list[Array], target: float) -> Array:
        stacked = np.stack(rows)
        found, moved = vaccinate(
            (stacked @ stacked.T).tolist(), orders, [[0, target], [target, 0]], 0.5
        )
        assert np.isfinite(found).all() and np.isfinite(moved).all()
        return np.asarray(np.sum(found, axis=0) @ stacked)

    # Opposite ones cancel, whatever the target above -1.
    assert np.abs(weights([first, -2 * first], 0.5)).max() < 1e-12
    assert weights([first, 0 * first], 0.9) == pytest.approx(first)
    assert not weights([0 * first, 0 * first], 0.9).any()
    # A target of 1 has no limit in the paper's formula.
    assert np.isfinite(weights([first, second], 1.0)).all()
    alone = prepared().weights(torch.tensor([[4.0]]).double(), context=context(0, ["task1"]))
    assert alone.tolist() == [1.0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"beta": 2.0}, "balancer.beta"), ({"granularity": "layer"}, "balancer.granularity")],
)
def test_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        gradvac(**settings)
