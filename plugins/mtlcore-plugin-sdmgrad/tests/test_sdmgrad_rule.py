"""Weights of independent batches: golden vectors, optimality, partial labels, and edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mtlcore.balancing import BalancerContext
from mtlcore.errors import UsageError
from mtlcore_sdmgrad.balancer import MoDo, SDMGrad, regularised_weights, semidefinite

Array = NDArray[np.float64]
NAMES = ("task0", "task1", "task2")


def of_batches(batches: Sequence[Array], present: Sequence[str] | None = None) -> BalancerContext:
    names = tuple(present or (f"task{i}" for i in range(len(batches[0]))))
    each = torch.from_numpy(np.stack(batches))
    gramians = torch.einsum("akp,blp->abkl", each, each)
    # Here a row of zeros is a task without a label, unless all of its rows are zeros.
    numbers = (each != 0).any(-1).sum(0).double()
    numbers[numbers == 0] = len(batches)
    return BalancerContext(tasks=names, present=names, gramians=gramians, labelled_batches=numbers)


def weights_of(balancer: Any, batches: Sequence[Array]) -> Array:
    mean = torch.from_numpy(np.mean(batches, axis=0))
    found = balancer.weights(mean @ mean.T, context=of_batches(batches)).numpy()
    return np.asarray(found)


def test_golden_fixed_point(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    """With all batches equal, it is the exact minimum."""
    arrays = golden_arrays("balancers.npz") | golden_arrays("golden_more.npz")
    for case in golden("golden_more.json")["cases"]:
        rows, expected = arrays[case["matrix"]], arrays[f"sdmgrad_dir_{case['id']}"]
        lam = case["sdmgrad"]["lam"]
        one, three = SDMGrad(lam=lam, batches=1), SDMGrad(lam=lam)
        found = one.weights(torch.from_numpy(rows @ rows.T)).numpy() @ rows
        assert np.linalg.norm(found - expected) <= 1e-9 * np.linalg.norm(expected), case["id"]
        assert one.status == "converged"
        answer = weights_of(three, [rows, rows, rows])
        assert not answer[:2, 0].any()
        found = answer[2, 0] @ rows
        assert np.linalg.norm(found - expected) <= 1e-9 * np.linalg.norm(expected), case["id"]
        assert answer[:, 1] == pytest.approx(np.full((3, case["K"]), 1 / 3))


def test_golden_edges(golden: Callable[[str], Any]) -> None:
    for case in golden("golden_more.json")["degenerate"]:
        rows = np.array(case["rows"], dtype=np.float64)
        found = weights_of(SDMGrad(lam=0.3), [rows, rows, rows])[2, 0] @ rows
        assert found == pytest.approx(case["sdmgrad_lam_0_3"], abs=1e-12), case["name"]


def test_golden_modo(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    case = golden("golden_more.json")["sequence"]["modo"]
    arrays = golden_arrays("golden_more.npz")
    balancer = MoDo(gamma=case["gamma"], rho=case["rho"])
    steps = zip(
        arrays["seq_J"], arrays["seq_J2"], arrays["seq_modo_dir"], case["steps"], strict=True
    )
    for first, second, expected, recorded in steps:
        weights = weights_of(balancer, [first, second])
        assert weights == pytest.approx(recorded["lam"], abs=1e-12)
        assert weights @ (first + second) / 2 == pytest.approx(expected, rel=1e-10)
        balancer.after_step(of_batches([first, second]))


def test_without_lam_it_is_mgda_and_with_much_the_mean(
    golden: Callable[[str], Any], golden_arrays: Callable[[str], dict[str, Any]]
) -> None:
    arrays = golden_arrays("balancers.npz")
    for case in golden("balancers.json")["cases"]:
        rows = arrays[case["matrix"]]
        found = weights_of(SDMGrad(lam=0.0), [rows, rows, rows])[2, 0]
        expected = np.array(case["mgda"]["alpha"]) @ rows
        assert np.linalg.norm(found @ rows - expected) <= 1e-7 * np.linalg.norm(expected)
        much = weights_of(SDMGrad(lam=1e9), [rows, rows, rows])[2, 0]
        assert much == pytest.approx(np.full(len(rows), 1 / len(rows)), rel=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_weights_are_better(seed: int) -> None:
    random = np.random.default_rng(seed)
    count, lam = int(random.integers(2, 8)), float(random.uniform(0, 1))
    rows = random.standard_normal((count, 12)) * 10 ** random.uniform(-1, 1, (count, 1))
    products = rows @ rows.T
    found = regularised_weights(products, lam)
    assert found.sum() == pytest.approx(1)
    assert (found >= lam / count / (1 + lam) - 1e-12).all()
    best = found @ products @ found
    others = random.dirichlet(np.full(count, 0.3), 300)
    others = (others + lam / count) / (1 + lam)
    values = np.einsum("nk,kl,nl->n", others, products, others)
    assert (values >= best * (1 - 1e-10)).all()


def test_products_become_those_of_vectors() -> None:
    random = np.random.default_rng(0)
    first, second = random.standard_normal((2, 4, 6))
    products, scales = first @ second.T, np.array([1.0, 2.0, 0.5, 1.0])
    found = semidefinite(products, scales)
    unit = found / scales / scales[:, None]
    values = np.linalg.eigvalsh(unit)
    assert values[0] >= -1e-12
    symmetric = products / scales / scales[:, None]
    symmetric = (symmetric + symmetric.T) / 2
    assert np.linalg.eigvalsh(symmetric)[0] < -0.1  # no vectors have these
    # The nearest ones: what was taken away is what was negative.
    vals, vecs = np.linalg.eigh(symmetric)
    assert unit == pytest.approx((vecs * np.maximum(vals, 0)) @ vecs.T)
    gram = first @ first.T
    assert semidefinite(gram, np.ones(4)) == pytest.approx(gram, rel=1e-12)


def test_the_first_two_batches_decide() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 3, 20)) + 0.3
    answer = weights_of(SDMGrad(lam=0.3), rows)
    lengths = np.linalg.norm(rows, axis=2)
    products = semidefinite(rows[0] @ rows[1].T, np.sqrt(lengths[0] * lengths[1]))
    assert answer[2, 0] == pytest.approx(regularised_weights(products, 0.3))
    assert answer[2, 0] != pytest.approx(regularised_weights(rows[0] @ rows[0].T, 0.3), rel=1e-2)
    assert not answer[:2, 0].any()


def test_the_third_batch_is_learnt_from_and_heads_from_all() -> None:
    torch.manual_seed(0)
    trunk = nn.Linear(3, 4).double()
    heads = {name: nn.Linear(4, 1).double() for name in NAMES}
    batches = []
    for _ in range(3):
        hidden = trunk(torch.randn(5, 3, dtype=torch.float64)).tanh()
        batches.append(
            {n: (h(hidden) - i).square().mean() for i, (n, h) in enumerate(heads.items())}
        )
    shared = [trunk.weight, trunk.bias]
    rows = [
        np.stack(
            [
                torch.cat([g.flatten() for g in torch.autograd.grad(x, shared, retain_graph=True)])
                for x in losses.values()
            ]
        )
        for losses in batches
    ]
    own = {
        n: torch.stack(
            [torch.autograd.grad(b[n], h.weight, retain_graph=True)[0] for b in batches]
        ).mean(0)
        for n, h in heads.items()
    }
    balancer = SDMGrad()
    answer = weights_of(balancer, rows)
    balancer.backward(batches[0], shared, more_losses=batches[1:])
    found = torch.cat([p.grad.flatten() for p in shared if p.grad is not None]).numpy()
    assert found == pytest.approx(answer[2, 0] @ rows[2], rel=1e-9)
    for name, head in heads.items():
        torch.testing.assert_close(head.weight.grad, own[name])


def test_a_task_without_labels_in_a_batch_has_no_part_in_the_weights() -> None:
    rows = np.random.default_rng(0).standard_normal((3, 3, 20))
    rows[1, 2] = 0  # no label in the second batch
    answer = weights_of(SDMGrad(lam=0.3), rows)
    assert answer[2, 0, 2] == pytest.approx(0.1 / 1.3)
    assert answer[2, 0].sum() == pytest.approx(1)
    # The second batch has no row of it.
    assert answer[:, 1, 2] == pytest.approx([0.5, 0.5, 0.5])
    assert answer[:, 1, :2] == pytest.approx(np.full((3, 2), 1 / 3))
    rows[0, 2] = rows[1, 1] = rows[0, 0] = 0  # no two batches know a task
    answer = weights_of(SDMGrad(lam=0.3), rows)
    assert answer[2, 0] == pytest.approx(np.full(3, 0.1 / 1.3))


def test_a_gradient_of_zero_is_no_missing_label() -> None:
    """The heads of a batch learn, though nothing reaches the trunk from it."""
    rows = np.random.default_rng(0).standard_normal((3, 3, 20))
    context = of_batches(rows)
    rows[1, 2] = 0
    gramians = of_batches(rows).gramians
    mean = torch.from_numpy(rows.mean(0))
    answer = SDMGrad(lam=0.3).weights(
        mean @ mean.T, context=attrs.evolve(context, gramians=gramians)
    )
    torch.testing.assert_close(answer[:, 1], torch.full((3, 3), 1 / 3, dtype=torch.float64))
    assert float(answer[2, 0, 2]) > 0.1  # known to have no slope, so MGDA would take it alone


def test_opposite_gradients_are_told_of() -> None:
    first = np.random.default_rng(0).standard_normal(8)
    balancer = SDMGrad(batches=1)
    rows = torch.from_numpy(np.stack([first, -first]))
    assert np.abs(balancer.weights(rows @ rows.T).numpy() @ rows.numpy()).max() < 1e-12
    assert balancer.status == "degenerate"
    alone = balancer.weights(rows[:1] @ rows[:1].T)
    assert alone.tolist() == [1.0] and balancer.status == "converged"


def test_modo_keeps_the_weight_of_absent_tasks() -> None:
    rows = np.random.default_rng(0).standard_normal((2, 3, 20)) / 5
    balancer = MoDo()
    weights_of(balancer, rows)
    balancer.after_step(of_batches(rows))
    before = {n: float(x) for n, x in balancer.shares.get_extra_state().items()}
    context = of_batches(rows[:, [2, 0]], ["task2", "task0"])
    mean = torch.from_numpy(rows[:, [2, 0]].mean(0))
    found = balancer.weights(mean @ mean.T, context=context)
    assert float(found.sum()) == pytest.approx(1)
    balancer.shares.discard()
    balancer.after_step(context)
    assert {n: float(x) for n, x in balancer.shares.get_extra_state().items()} == before
    balancer.weights(mean @ mean.T, context=context)
    balancer.after_step(context)
    after = {n: float(x) for n, x in balancer.shares.get_extra_state().items()}
    assert after["task1"] == before["task1"] and after["task0"] != before["task0"]
    assert sum(after.values()) == pytest.approx(sum(before.values()))
    balancer.reset()
    assert balancer.shares.get_extra_state() == {}


def test_they_need_their_batches() -> None:
    for balancer, words in ((SDMGrad(), "three batches"), (MoDo(), "two batches")):
        with pytest.raises(UsageError, match=words):
            balancer.weights(torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SDMGrad(lam=-1.0), r"balancer\.lam"),
        (lambda: SDMGrad(batches=2), r"balancer\.batches"),  # type: ignore[arg-type]
        (lambda: MoDo(gamma=-1.0), r"balancer\.gamma"),
        (lambda: MoDo(rho=-1.0), r"balancer\.rho"),
    ],
)
def test_settings(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()
