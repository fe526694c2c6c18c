"""Gates of auxiliary tasks: golden vectors, the main task's name, heads, and edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mtlcore.balancing import BalancerContext
from mtlcore.errors import UsageError
from mtlcore.tasks import Task
from mtlcore_gradcos.balancer import GradCos

Array = NDArray[np.float64]
NAMES = ("red", "green", "blue")


def weights_of(
    balancer: GradCos, rows: Any, present: Sequence[str] | None = None, tasks: Any = NAMES
) -> Array:
    stacked = torch.from_numpy(np.asarray(rows, dtype=np.float64))
    context = None
    if present is not None:
        context = BalancerContext(tasks=tuple(tasks), present=tuple(present))
    found = balancer.weights(stacked @ stacked.T, context=context).numpy()
    assert (found[1] == 1).all()  # heads keep learning
    return np.asarray(found[0])


def test_golden(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    arrays = golden_arrays("balancers.npz")
    for case in golden("golden_more.json")["cases"]:
        rows, expected = arrays[case["matrix"]], case["gradcos"]
        assert expected["main"] == 0
        for weighted, key in ((True, "weighted"), (False, "unweighted")):
            balancer = GradCos(weighted=weighted)
            found = weights_of(balancer, rows)
            assert found == pytest.approx(expected[key], abs=1e-12), case["id"]
            assert balancer.status == "converged"


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_no_auxiliary_task_works_against_the_main_one(scale: float) -> None:
    random = np.random.default_rng(0)
    for weighted in (True, False):
        rows = scale * random.standard_normal((6, 4)) * 10 ** random.uniform(-2, 2, (6, 1))
        weights = weights_of(GradCos(weighted=weighted), rows)
        shared = weights @ rows
        assert weights[0] == 1 and (weights >= 0).all() and (weights <= 1).all()
        assert shared @ rows[0] >= rows[0] @ rows[0] * (1 - 1e-12)
        for weight, row in zip(weights[1:], rows[1:], strict=True):
            assert (weight > 0) == (row @ rows[0] > 0)


def test_the_main_task_goes_by_its_name() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    half = np.sqrt(0.5)
    assert weights_of(GradCos(main="blue"), rows, NAMES) == pytest.approx([half, half, 1.0])
    moved = weights_of(GradCos(main="blue"), rows[[2, 0]], ["blue", "red"])
    assert moved == pytest.approx([1.0, half])
    # Unset, it is the first one of the run, wherever its row stands.
    found = weights_of(GradCos(), rows[[1, 0]], ["green", "red"])
    assert found == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("weighted", [True, False])
def test_without_a_main_gradient_the_trunk_stops(weighted: bool) -> None:
    rows = np.array([[1.0, 0.0], [0.0, 2.0]])
    balancer = GradCos(main="red", weighted=weighted)
    assert weights_of(balancer, rows, ["green", "blue"]).tolist() == [0.0, 0.0]
    assert balancer.status == "degenerate"
    assert weights_of(balancer, 0 * rows, ["red", "blue"]).tolist() == [0.0, 0.0]
    assert balancer.status == "degenerate"
    assert weights_of(balancer, rows, ["red", "blue"]).tolist() == [1.0, 0.0 if weighted else 1.0]
    assert balancer.status == "converged"
    assert weights_of(balancer, rows[:1], ["red"]).tolist() == [1.0]


def test_heads_of_auxiliary_tasks_keep_learning() -> None:
    torch.manual_seed(0)
    trunk = nn.Linear(3, 4, bias=False).double()
    heads = {name: nn.Linear(4, 1).double() for name in NAMES}
    hidden = trunk(torch.randn(5, 3, dtype=torch.float64))
    losses = {n: (head(hidden) - i).square().mean() for i, (n, head) in enumerate(heads.items())}
    losses["blue"] = -losses["blue"]
    plain = {
        n: torch.autograd.grad(losses[n], [trunk.weight, head.weight], retain_graph=True)
        for n, head in heads.items()
    }
    balancer = GradCos(main="red")
    balancer.prepare([Task(name=name, kind="depth", channels=1) for name in NAMES])
    result = balancer.backward(losses, [trunk.weight])
    assert 0 in result.weights.values() and result.weights["red"] == 1
    expected = sum(result.weights[n] * plain[n][0] for n in NAMES)
    torch.testing.assert_close(trunk.weight.grad, expected)
    for name, head in heads.items():
        torch.testing.assert_close(head.weight.grad, plain[name][1])


def test_an_unknown_main_task_is_named() -> None:
    tasks = [Task(name=name, kind="depth", channels=1) for name in NAMES]
    with pytest.raises(UsageError, match=r"balancer\.main: no task named 'gren'.*red, green, blue"):
        GradCos(main="gren").prepare(tasks)
    GradCos(main="green").prepare(tasks)
    GradCos().prepare(tasks)
