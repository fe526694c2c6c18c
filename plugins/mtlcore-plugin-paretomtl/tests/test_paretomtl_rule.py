"""Preferences, the shortest combination, the two phases, and the front of the toy problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from mtlcore.balancing import BalancerContext
from mtlcore.errors import UsageError
from mtlcore.tasks import Task
from mtlcore_paretomtl.balancer import ParetoMTL, preference_vectors
from mtlcore_paretomtl.solver import Array, shortest

NAMES = ("a", "b", "c")
Golden = Callable[[str], Any]


def context(losses: Sequence[float], progress: float = 0.0, count: int | None = None):
    tasks = NAMES[: count or len(losses)]
    present = tasks[: len(losses)]
    return BalancerContext(
        tasks=tasks,
        present=present,
        losses=dict(zip(present, losses, strict=True)),
        progress=progress,
    )


def solve(balancer: ParetoMTL, rows: Array, here: BalancerContext | None) -> Array:
    return balancer.weights(torch.from_numpy(rows @ rows.T), here).numpy()


# Preferences


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_two_tasks_have_preferences_at_even_angles(count: int) -> None:
    angles = np.linspace(0, np.pi / 2, count)
    expected = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert preference_vectors(2, count) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("tasks", "count", "found"), [(3, 5, 6), (3, 7, 10), (7, 5, 7), (40, 5, 40)]
)
def test_more_tasks_have_at_least_as_many(tasks: int, count: int, found: int) -> None:
    vectors = preference_vectors(tasks, count)
    assert vectors.shape == (found, tasks) and (vectors >= 0).all()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(found))
    assert vectors[0].tolist() == np.eye(tasks)[0].tolist()
    assert vectors[-1].tolist() == np.eye(tasks)[-1].tolist()
    # No task is favoured: any order of them has the same set.
    turned = {tuple(np.roll(vector.round(9), 1)) for vector in vectors}
    assert turned == {tuple(vector.round(9)) for vector in vectors}


def test_settings_are_checked() -> None:
    tasks = [Task(name=name, kind="depth", channels=1) for name in NAMES]
    with pytest.raises(UsageError, match=r"balancer\.preferences: 1 "):
        ParetoMTL(preferences=1)
    with pytest.raises(UsageError, match=r"balancer\.initial: 1\.5 "):
        ParetoMTL(initial=1.5)
    ParetoMTL(preference=5).prepare(tasks)
    for preference in (6, -1):
        with pytest.raises(UsageError, match=r"balancer\.preference: .* 6 preferences for 3 tasks"):
            ParetoMTL(preference=preference).prepare(tasks)


# The shortest combination


@pytest.mark.parametrize("seed", range(60))
def test_the_shortest_combination_is_optimal(seed: int) -> None:
    """No vector has a part along it that is shorter than itself: the conditions of the optimum."""
    random = np.random.default_rng(seed)
    count, size = random.integers(1, 9), random.integers(1, 12)
    rows = random.standard_normal((count, size)) + random.standard_normal(size)
    if seed % 3 == 0:
        rows *= 10 ** random.uniform(-3, 3, (count, 1))
    if seed % 4 == 0:
        rows[-1] = 2 * rows[0]
    x = shortest(rows @ rows.T)
    assert (x >= 0).all() and x.sum() == pytest.approx(1, rel=1e-12)
    norms = np.linalg.norm(rows, axis=1)
    found = x @ rows
    length = max(float(np.linalg.norm(found)), 1e-7 * float(x @ norms))
    assert ((found @ found - rows @ found) / norms <= 1e-5 * length).all()


def test_it_is_the_min_norm_point_of_mgda(golden: Golden, golden_arrays: Golden) -> None:
    arrays = golden_arrays("balancers.npz")
    for case in golden("balancers.json")["cases"]:
        rows = arrays[case["matrix"]]
        x, expected = shortest(np.array(case["gram"])), case["mgda"]
        assert x == pytest.approx(expected["alpha"], rel=1e-6, abs=1e-9), case["id"]
        found = x @ rows
        assert found @ found == pytest.approx(expected["min_norm_sq"], rel=1e-9), case["id"]


def test_it_is_the_min_norm_point_of_degenerate_inputs(golden: Golden) -> None:
    for case in golden("golden_more.json")["degenerate"]:
        rows = np.array(case["rows"])
        assert shortest(rows @ rows.T) @ rows == pytest.approx(case["mgda"], abs=1e-12), case[
            "name"
        ]


def test_two_vectors_in_closed_form() -> None:
    for one, two in (([2.0, 0.0], [0.0, 1.0]), ([1.0, 1.0], [3.0, 2.0]), ([1.0, 0.0], [-3.0, 0.5])):
        a, b = np.array(one), np.array(two)
        share = np.clip((b - a) @ b / ((a - b) @ (a - b)), 0, 1)
        rows = np.stack([a, b])
        assert shortest(rows @ rows.T) == pytest.approx([share, 1 - share], abs=1e-9)


def test_opposite_vectors_cancel() -> None:
    rows = np.array([[1.0, 2.0], [-3.0, -6.0], [5.0, 0.0]])
    assert shortest(rows @ rows.T) == pytest.approx([0.75, 0.25, 0], abs=1e-9)


# The rule


ROWS = np.array([[1.0, 0.2, 0.0], [0.0, 1.0, 0.5]])


def test_where_the_preference_is_met_it_is_mgda() -> None:
    weights = solve(ParetoMTL(preferences=3, preference=1), ROWS, context([1.0, 1.0]))
    assert weights == pytest.approx(2 * shortest(ROWS @ ROWS.T), rel=1e-12)


@pytest.mark.parametrize(("losses", "worse"), [([2.0, 0.1], 0), ([0.1, 2.0], 1)])
def test_the_initial_phase_descends_what_is_violated(losses: list[float], worse: int) -> None:
    """Too much of one loss: it falls, at the other's expense."""
    balancer = ParetoMTL(preferences=3, preference=1, initial=0.5)
    weights = solve(balancer, ROWS, context(losses))
    assert weights[worse] > 0 > weights[1 - worse]
    # The only active constraint is that of the part the losses are in.
    vectors = preference_vectors(2, 3)
    expected = vectors[2 * worse] - vectors[1]
    assert weights == pytest.approx(2 * expected / np.abs(expected).sum(), rel=1e-12)
    update = weights @ ROWS
    assert expected @ ROWS @ update > 0


@pytest.mark.parametrize("losses", [[2.0, 0.1], [0.1, 2.0]])
def test_later_nothing_that_counts_gets_worse(losses: list[float]) -> None:
    balancer = ParetoMTL(preferences=3, preference=1, initial=0.5)
    weights = solve(balancer, ROWS, context(losses, progress=0.5))
    constraint = preference_vectors(2, 3)[2 if losses[1] > losses[0] else 0]
    constraint = (constraint - preference_vectors(2, 3)[1]) @ ROWS
    update = weights @ ROWS
    assert (ROWS @ update >= -1e-12).all() and constraint @ update >= -1e-12
    assert np.abs(weights).sum() == pytest.approx(2, rel=1e-12)


def test_only_the_direction_of_the_losses_counts() -> None:
    for progress in (0.0, 0.9):
        one, other = (
            solve(ParetoMTL(), ROWS, context([2.0 * scale, 0.1 * scale], progress))
            for scale in (1.0, 1e-6)
        )
        assert one.tolist() == other.tolist()


def test_the_initial_phase_ends_for_good_once_the_preference_is_met() -> None:
    balancer = ParetoMTL(preferences=3, preference=1, initial=0.5)
    outside, inside = context([2.0, 0.1]), context([1.0, 1.0])
    first = solve(balancer, ROWS, outside)
    balancer.after_step(outside)
    assert solve(balancer, ROWS, outside).tolist() == first.tolist()
    balancer.after_step(inside)
    later = solve(balancer, ROWS, outside)
    assert later.tolist() == solve(balancer, ROWS, context([2.0, 0.1], progress=0.7)).tolist()
    assert later.tolist() != first.tolist()
    restored = ParetoMTL(preferences=3, preference=1, initial=0.5)
    restored.load_state_dict(balancer.state_dict())
    assert solve(restored, ROWS, outside).tolist() == later.tolist()
    balancer.reset()
    assert solve(balancer, ROWS, outside).tolist() == first.tolist()


def test_steps_that_lack_a_task_and_callers_that_know_no_losses() -> None:
    plain = (2 * shortest(ROWS @ ROWS.T)).tolist()
    balancer = ParetoMTL(preference=0)
    assert solve(balancer, ROWS, context([2.0, 0.1], count=3)).tolist() == plain
    assert balancer.status == "converged"
    balancer.after_step(context([2.0, 0.1], count=3))
    assert balancer.get_extra_state() == {"found": False}
    assert solve(balancer, ROWS, None).tolist() == plain
    assert balancer.status == "degenerate"


def test_heads_weigh_the_same_or_one() -> None:
    here = context([2.0, 0.1])
    free = solve(ParetoMTL(), ROWS, here)
    assert free.shape == (2,)
    assert solve(ParetoMTL(weigh_heads=True), ROWS, here).tolist() == [free.tolist()] * 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(bad: float) -> None:
    balancer = ParetoMTL()
    with pytest.raises(ValueError, match="not finite"):
        balancer.weights(torch.tensor([[1.0, bad], [bad, 1.0]]))
    assert balancer.status == "not finite"
    with pytest.raises(ValueError, match=r"\(K, K\)"):
        balancer.weights(torch.ones(2, 3))


# The toy problem of the paper, whose front is concave


def toy(x: Tensor) -> dict[str, Tensor]:
    centre = len(x) ** -0.5
    return {
        "a": -torch.expm1(-(x - centre).square().sum()),
        "b": -torch.expm1(-(x + centre).square().sum()),
    }


def descended(balancer: ParetoMTL, seed: int, steps: int = 60) -> Tensor:
    balancer.prepare([Task(name=name, kind="depth", channels=1) for name in "ab"])
    generator = torch.Generator().manual_seed(seed)
    x = Parameter(torch.rand(20, generator=generator, dtype=torch.float64) - 0.5)
    for step in range(steps):
        here = BalancerContext(tasks=("a", "b"), present=("a", "b"), progress=step / steps)
        x.grad = None
        balancer.backward(toy(x), [x], here)
        with torch.no_grad():
            x -= x.grad / 2
        balancer.after_step(here)
    return x.detach()


@pytest.mark.parametrize("preference", range(5))
def test_every_preference_ends_on_the_front_in_its_own_part(preference: int) -> None:
    """Whatever the start; a weighted sum of these losses is lowest at an end of the front."""
    vectors = torch.from_numpy(preference_vectors(2, 5))
    for seed in range(2):
        x = descended(ParetoMTL(preferences=5, preference=preference), seed)
        place = float(x.mean()) * math.sqrt(20)
        assert -1 - 1e-3 <= place <= 1 + 1e-3
        assert float((x - x.mean()).norm()) < 1e-3  # on the front all are equal
        losses = torch.stack([*toy(x).values()])
        products = vectors @ (losses / losses.norm())
        assert products[preference] >= products.max() - 1e-3
