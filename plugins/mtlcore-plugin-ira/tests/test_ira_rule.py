"""How weights move, stay finite and come back: classes, units of time, phases, several sources.

One file: every test drives the rule through the same `step`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext
from mtlcore.data import Batch, Sample, collate
from mtlcore.errors import UsageError
from mtlcore.tasks import Task
from mtlcore.testing import tiny_batch, tiny_learner
from mtlcore_ira.balancer import IRA

SEGMENTATION = Task(name="segmentation", kind="segmentation", channels=3)
DEPTH = Task(name="depth", kind="depth", channels=1, unit="m")
PARTS = Task(name="parts", kind="segmentation", channels=2, class_names=("left", "right"))
TASKS = (SEGMENTATION, DEPTH)
KEY = "task_segmentation"


def new(tasks: Sequence[Task] = TASKS, **settings: Any) -> IRA:
    balancer = IRA(**{"main": "depth", **settings})
    balancer.prepare(tasks)
    return balancer


def weight(balancer: IRA, key: str = KEY, phase: int = 0) -> Tensor:
    found = balancer.phases[phase][key].weight
    assert isinstance(found, Tensor)
    return found


def drawn(seed: int, tasks: Sequence[Task] = TASKS, count: int = 4, masked: float = 0.3) -> Batch:
    return tiny_batch(count, seed=seed, tasks=tasks, masked=masked)


def step(
    balancer: IRA,
    number: int,
    batch: Batch | None = None,
    maps: dict[str, Tensor] | None = None,
    *,
    progress: float = 0.0,
    take: bool = True,
) -> dict[str, Tensor]:
    """One step; by default on drawn labels with drawn losses."""
    batch = batch or drawn(number)
    names = tuple(batch.targets)
    if maps is None:
        maps = some_maps(batch, number)
    context = BalancerContext(
        tasks=names,
        present=batch.present(names),
        step=number,
        progress=progress,
        maps=maps,
        batch=batch,
    )
    balanced = balancer.transform(reduced(maps, batch), context)
    if take:
        balancer.after_step(context)
    return balanced


def some_maps(batch: Batch, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        name: torch.rand(valid.shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for name, valid in batch.valid.items()
        if batch.count[name]
    }


def reduced(maps: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    return {n: (m * batch.valid[n]).sum() / batch.valid[n].sum() for n, m in maps.items()}


def by_class(losses: Sequence[tuple[float, float]]) -> tuple[Batch, dict[str, Tensor]]:
    """A point per class, with the main and the auxiliary loss of each as the class's mean."""
    number = len(losses)
    sample = Sample(
        inputs=torch.zeros(3, 1, number),
        targets={
            "segmentation": torch.arange(number)[None],
            "depth": torch.ones(1, 1, number),
        },
        valid=dict.fromkeys(("segmentation", "depth"), torch.ones(1, number).bool()),
        key="classes",
    )
    maps = {
        name: number * torch.tensor([[[pair[place] for pair in losses]]], dtype=torch.float64)
        for place, name in enumerate(("depth", "segmentation"))
    }
    return collate([sample], TASKS), {name: m.requires_grad_() for name, m in maps.items()}


# The loss


def test_weights_of_one_are_the_plain_sum_bit_for_bit() -> None:
    batch = drawn(0)
    maps = some_maps(batch, 0)
    plain, balanced = reduced(maps, batch), step(new(), 0, batch, maps)
    for name, loss in plain.items():
        assert torch.equal(loss, balanced[name])
        (one,) = torch.autograd.grad(loss, maps[name], retain_graph=True)
        (other,) = torch.autograd.grad(balanced[name], maps[name], retain_graph=True)
        assert torch.equal(one, other)


@pytest.mark.parametrize("normalisation", ["valid", "sample"])
def test_each_place_counts_its_class_weight_under_any_normalisation(normalisation: Any) -> None:
    balancer = IRA(main="depth", auxiliary=("segmentation",))
    learner = tiny_learner([balancer], normalisation=normalisation).double()
    found = torch.tensor([0.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    weight(balancer).copy_(found)
    batch = tiny_batch(views=(0, 1, 0, 0))
    batch = attrs.evolve(batch, inputs=batch.inputs.double())
    losses = learner(batch, learner.tasks)
    rows = [0, 2, 3]
    labels, valid = batch.targets["segmentation"][rows], batch.valid["segmentation"][rows]
    weighted = losses.maps["segmentation"] * found[labels] * valid
    if normalisation == "valid":
        expected = weighted.sum() / valid.sum()
    else:
        expected = (weighted.flatten(1).sum(1) / valid.flatten(1).sum(1)).mean()
    torch.testing.assert_close(losses.balanced["segmentation"], expected, rtol=1e-12, atol=0)
    assert torch.equal(losses.balanced["depth"], losses.raw["depth"])
    assert torch.equal(losses.balanced["normals"], losses.raw["normals"])
    gradient = torch.autograd.grad(losses.balanced["segmentation"], losses.maps["segmentation"])
    assert not gradient[0][labels == 0].any()


def test_nothing_learns_from_a_loss_without_gradient() -> None:
    batch = drawn(0)
    maps = {name: m.detach() for name, m in some_maps(batch, 0).items()}
    balancer = new()
    weight(balancer).fill_(0.5)
    assert torch.equal(
        step(balancer, 0, batch, maps)["segmentation"], reduced(maps, batch)["segmentation"]
    )


# What is looked at


def test_only_points_valid_for_both_are_compared() -> None:
    balancers = [new(alpha=0.1) for _ in range(2)]
    for number in range(4):
        batch = drawn(number)
        both = batch.valid["segmentation"] & batch.valid["depth"]
        maps = some_maps(batch, number)
        spoilt = {n: torch.where(both, m, 7.5).requires_grad_() for n, m in maps.items()}
        step(balancers[0], number, batch, maps)
        step(balancers[1], number, batch, spoilt)
    assert torch.equal(weight(balancers[0]), weight(balancers[1]))
    assert not torch.equal(weight(balancers[0]), torch.ones(3, dtype=torch.float64))


def test_a_class_that_is_absent_waits() -> None:
    balancer, parts = new(alpha=0.1), balancer_state
    step(balancer, 0)
    step(balancer, 1)
    before = parts(balancer)
    batch = drawn(2)
    without = torch.where(batch.targets["segmentation"] == 1, 2, batch.targets["segmentation"])
    batch = attrs.evolve(batch, targets={**batch.targets, "segmentation": without})
    step(balancer, 2, batch)
    after = parts(balancer)
    for name, old in before.items():
        assert torch.equal(old[..., 1], after[name][..., 1]), name
        if name != "first":
            assert not torch.equal(old[..., 2], after[name][..., 2]), name
    # Back again it is compared with what was last seen of it.
    last = before["last"][:, 1]
    step(balancer, 3)
    now = parts(balancer)
    g = (now["last"][:, 1] - last) / before["first"][:, 1]
    ratio = (g[0] + 1e-8) / (g[1] + 1e-8)
    expected = ratio.clamp(-10, 10) * now["last"][1, 1]
    moved = now["first_moment"][1] - 0.9 * before["first_moment"][1]
    torch.testing.assert_close(moved, 0.1 * expected, rtol=1e-9, atol=1e-12)
    assert now["updates"].tolist() == [3, 2, 3]


def balancer_state(balancer: IRA, key: str = KEY) -> dict[str, Tensor]:
    names = ("weight", "first_moment", "second_moment", "updates", "first", "last")
    module = balancer.phases[0][key]
    return {name: getattr(module, name).clone() for name in names}


def test_steps_without_the_main_or_the_auxiliary_task_move_nothing() -> None:
    balancer = new(alpha=0.1)
    for number in range(3):
        step(balancer, number)
    before = balancer_state(balancer)
    for number, absent in enumerate(TASKS, 3):
        batch = tiny_batch(seed=number, tasks=TASKS, absent=(absent.name,))
        (left,) = step(balancer, number, batch)
        assert left != absent.name
    # Both are there, but no point has both labels.
    batch = drawn(5, masked=0.0)
    half = torch.zeros_like(batch.valid["depth"])
    half[:2] = True
    apart = attrs.evolve(batch, valid={"segmentation": half, "depth": ~half})
    step(balancer, 5, apart)
    after = balancer_state(balancer)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_skipped_step_leaves_no_trace() -> None:
    one, other = new(alpha=0.1), new(alpha=0.1)
    context = BalancerContext(tasks=("segmentation", "depth"))  # one for all steps, as in a run
    for number in range(6):
        batch = drawn(number)
        maps = some_maps(batch, number)
        if number != 3:
            step(one, number, batch, maps)
        else:
            maps = {name: m * torch.nan for name, m in maps.items()}
        context.step, context.present = number, tuple(maps)
        context.maps, context.batch = maps, batch
        other.transform(reduced(maps, batch), context)
        if number != 3:
            other.after_step(context)
    assert torch.equal(weight(one), weight(other))


def halves(batch: Batch) -> list[Batch]:
    cuts = []
    for rows in (slice(0, 1), slice(1, None)):
        targets = {name: target[rows] for name, target in batch.targets.items()}
        valid = {name: mask[rows] for name, mask in batch.valid.items()}
        cuts.append(
            attrs.evolve(
                batch,
                inputs=batch.inputs[rows],
                targets=targets,
                valid=valid,
                count={name: int(mask.sum()) for name, mask in valid.items()},
                view=batch.view[rows],
                keys=batch.keys[rows],
                meta=batch.meta[rows],
            )
        )
    return cuts


def test_accumulated_batches_move_weights_as_one_large_batch() -> None:
    whole, pieces = new(alpha=0.1), new(alpha=0.1)
    for number in range(5):
        batch, maps = drawn(number), some_maps(drawn(number), number)
        balanced = step(whole, number, batch, maps)
        (expected,) = torch.autograd.grad(balanced["segmentation"], maps["segmentation"])
        context = BalancerContext(tasks=tuple(maps), present=tuple(maps), step=number)
        rows = []
        for rows_of, part in zip((slice(0, 1), slice(1, None)), halves(batch), strict=True):
            context.batch = part
            mine = {n: m.detach()[rows_of].requires_grad_() for n, m in maps.items()}
            context.maps = mine
            losses = pieces.transform(reduced(mine, part), context)
            share = part.count["segmentation"] / batch.count["segmentation"]
            rows += torch.autograd.grad(share * losses["segmentation"], mine["segmentation"])
        pieces.after_step(context)
        torch.testing.assert_close(torch.cat(rows), expected, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(weight(pieces), weight(whole), rtol=1e-10, atol=0)


class Neighbours:
    """What `mtlcore.distributed.Distributed` does, between threads."""

    def __init__(self, rank: int, table: list[Any], barrier: threading.Barrier) -> None:
        self._rank, self._table, self._barrier = rank, table, barrier

    def _exchange(self, value: Any) -> list[Any]:
        self._table[self._rank] = value
        self._barrier.wait(20)
        found = list(self._table)
        self._barrier.wait(20)
        return found

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        return [any(column) for column in zip(*self._exchange(list(flags)), strict=True)]

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        found = self._exchange([tensor.clone() for tensor in tensors])
        for tensor, *parts in zip(tensors, *found, strict=True):
            tensor.copy_(torch.stack(parts).sum(0))


def test_processes_move_weights_as_one_with_all_samples() -> None:
    table: list[Any] = [None, None]
    barrier = threading.Barrier(2)
    whole, ranks = new(alpha=0.1), [new(alpha=0.1) for _ in range(2)]
    for number in range(5):
        step(whole, number)
    failed: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            for number in range(5):
                batch, maps = drawn(number), some_maps(drawn(number), number)
                part, rows = halves(batch)[rank], (slice(0, 1), slice(1, None))[rank]
                mine = {n: m.detach()[rows].requires_grad_() for n, m in maps.items()}
                context = BalancerContext(
                    tasks=tuple(mine), present=tuple(mine), step=number, maps=mine, batch=part
                )
                context.distributed = Neighbours(rank, table, barrier)  # type: ignore[assignment]
                # In the third step the first process has no sample.
                if number != 2 or rank == 1:
                    ranks[rank].transform(reduced(mine, part), context)
                ranks[rank].after_step(context)
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert torch.equal(weight(ranks[0]), weight(ranks[1]))
    again = new(alpha=0.1)
    for number in range(5):
        batch, maps = drawn(number), some_maps(drawn(number), number)
        if number == 2:
            batch, maps = halves(batch)[1], {n: m[1:] for n, m in maps.items()}
        step(again, number, batch, maps)
    torch.testing.assert_close(weight(ranks[0]), weight(again), rtol=1e-10, atol=0)
    assert not torch.allclose(weight(again), weight(whole), rtol=1e-6)


# Time


def test_time_units_are_means_over_their_steps() -> None:
    """Two units of three steps are two steps whose batches hold all their samples."""
    units, whole = new(alpha=0.1, every=3), new(alpha=0.1)
    batches = [drawn(number) for number in range(9)]
    maps = [some_maps(batch, number) for number, batch in enumerate(batches)]
    for number, batch in enumerate(batches):
        before = weight(units).clone()
        step(units, number, batch, maps[number])
        if number % 3 != 2:
            assert torch.equal(weight(units), before)
    for number in range(3):
        chosen = range(3 * number, 3 * number + 3)
        joined = {n: torch.cat([maps[i][n] for i in chosen]) for n in ("segmentation", "depth")}
        valid = {n: torch.cat([batches[i].valid[n] for i in chosen]) for n in joined}
        batch = attrs.evolve(
            batches[0],
            targets={n: torch.cat([batches[i].targets[n] for i in chosen]) for n in joined},
            valid=valid,
            count={n: int(mask.sum()) for n, mask in valid.items()},
            view=(0,) * 12,
            keys=("",) * 12,
        )
        step(whole, number, batch, joined)
    torch.testing.assert_close(weight(units), weight(whole), rtol=1e-10, atol=0)


def test_a_running_mean_of_losses() -> None:
    balancer = new(smoothing=0.75)
    for number, value in enumerate((1.0, 2.0, 0.0)):
        step(balancer, number, *by_class([(value + 1, value + 1)] * 3))
    last = balancer.phases[0][KEY].last
    # 2, then .75 * 2 + .25 * 3, then .75 * 2.25 + .25 * 1
    assert last[0].tolist() == pytest.approx([0.75 * 2.25 + 0.25] * 3, rel=1e-14)


def test_warm_up_keeps_weights_at_one_and_notes_nothing() -> None:
    balancer = new(alpha=0.1, warmup=0.5)
    for number in range(4):
        step(balancer, number, progress=number / 8)
    assert balancer.phases[0][KEY].first.isnan().all()
    fresh = new(alpha=0.1)
    for number in range(4, 8):
        step(balancer, number, progress=number / 8)
        step(fresh, number)
    assert torch.equal(weight(balancer), weight(fresh))
    assert not torch.equal(weight(fresh), torch.ones(3, dtype=torch.float64))


def test_the_reference_may_be_the_start_of_the_run() -> None:
    """Divided by other first losses, g of a class has another scale, which Adam takes out."""
    late, early = (new(alpha=0.1, warmup=0.5, clip=math.inf, reference=r)
                   for r in ("after-warmup", "start"))  # fmt: skip
    for number in range(8):
        for balancer in (late, early):
            step(balancer, number, progress=number / 8)
        if number == 3:
            assert not early.phases[0][KEY].first.isnan().any()
            assert torch.equal(weight(early), torch.ones(3, dtype=torch.float64))
    assert not torch.equal(late.phases[0][KEY].first, early.phases[0][KEY].first)
    # One update more: the first loss after the warm-up has one before it to be compared with.
    assert early.phases[0][KEY].updates.tolist() == [4, 4, 4]
    assert late.phases[0][KEY].updates.tolist() == [3, 3, 3]


# Roles


def test_roles_change() -> None:
    balancer = new(alpha=0.1, swap_at=0.5, bins=2)
    balancer.prepare(TASKS, [drawn(number) for number in range(3)])
    for number in range(4):
        step(balancer, number, progress=number / 8)
    kept = weight(balancer).clone()
    assert list(balancer.current_weights()) == ["segmentation"]
    batch, turned = drawn(4), new(main="segmentation", alpha=0.1, bins=2)
    turned.prepare(TASKS, [drawn(number) for number in range(3)])
    for number in range(4, 8):
        batch = drawn(number)
        maps = some_maps(batch, number)
        one = step(balancer, number, batch, maps, progress=number / 8)
        other = step(turned, number, batch, maps)
        # As in a run of its own with the other task as main one, and weights of 1.
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(weight(balancer), kept)
    assert balancer.current_weights() == turned.current_weights()
    assert list(balancer.current_weights()) == ["depth"]
    restored = new(alpha=0.1, swap_at=0.5, bins=2)
    restored.load_state_dict(balancer.state_dict())
    assert restored.current_weights() == balancer.current_weights()


def test_each_auxiliary_task_has_weights_of_its_own() -> None:
    tasks = (SEGMENTATION, DEPTH, PARTS)
    both = new(tasks, alpha=0.1)
    alone = {n: new(tasks, alpha=0.1, auxiliary=(n,)) for n in ("segmentation", "parts")}
    for number in range(4):
        batch = drawn(number, tasks)
        balanced = step(both, number, batch)
        for name, balancer in alone.items():
            assert torch.equal(step(balancer, number, batch)[name], balanced[name])
    for name, balancer in alone.items():
        assert torch.equal(weight(both, f"task_{name}"), weight(balancer, f"task_{name}"))
    assert list(both.current_weights()["parts"]) == ["left", "right"]
    assert list(both.current_weights()["segmentation"]) == ["class 0", "class 1", "class 2"]


def test_reset() -> None:
    balancer = new(alpha=0.1, every=2)
    for number in range(5):
        step(balancer, number)
    balancer.reset()
    fresh = new(alpha=0.1, every=2)
    for number in range(5, 10):
        assert torch.equal(*(step(each, number)["segmentation"] for each in (balancer, fresh)))
    assert torch.equal(weight(balancer), weight(fresh))


# Stability


def noisy(number: int, opposed: int) -> list[tuple[float, float]]:
    """Losses of three classes that jitter from batch to batch; one's main loss does the contrary.

    The contrary of its auxiliary loss: such a class serves the main task, and its g is negative.
    """
    generator = torch.Generator().manual_seed(number)
    jitter = 0.1 * (torch.rand(3, 2, generator=generator, dtype=torch.float64) - 0.5)
    rows = []
    for each, (own, other) in enumerate(jitter.tolist()):
        main = -own if each == opposed else other
        rows.append((0.5 + main, 0.3 + own))
    return rows


def test_a_class_at_zero_comes_back() -> None:
    """And why the printed form, whose own loss is then 0 as well, is not the default."""
    printed: dict[str, Any] = {"ratio_aux": "weighted", "clip": math.inf}
    found = {}
    for name, settings in (("default", {}), ("printed", printed)):
        balancer = new(alpha=1e-3, **settings)
        for number in range(20):
            step(balancer, number, *by_class(noisy(number, opposed=2)))
        weight(balancer)[:] = 0
        for number in range(20, 320):
            step(balancer, number, *by_class(noisy(number, opposed=2)))
            assert bool(weight(balancer).isfinite().all())
            assert float(weight(balancer).min()) >= 0
        found[name] = balancer
    assert float(weight(found["default"])[2]) > 0.1
    largest = {name: float(each.phases[0][KEY].second_moment.max()) for name, each in found.items()}
    assert largest["default"] < 10**2
    assert largest["printed"] > 1e6**2 / 1000


@pytest.mark.parametrize("ratio_aux", ["weighted", "unweighted"])
@pytest.mark.parametrize("eps_mode", ["literal", "signed", "clip"])
@pytest.mark.parametrize("clip", [math.inf, 10.0])
def test_tiny_changes_do_no_harm(ratio_aux: Any, eps_mode: Any, clip: float) -> None:
    """No change, changes at the limit of numbers, eps cancelled, losses that are 0 at first."""
    balancer = new(alpha=0.01, ratio_aux=ratio_aux, eps_mode=eps_mode, clip=clip)
    rows = [
        [(0.0, 0.3), (0.5, 0.0), (1e-200, 0.3)],
        [(0.5, 0.3), (0.5, 0.3), (0.7, 0.3)],
        [(0.6, 0.3), (0.4, 0.3 * (1 - 1e-8)), (0.7, 0.3)],
        [(0.6, 0.3 * (1 - 1e-8)), (0.4, 0.3 * (1 - 2e-8)), (1e-30, 1e-30)],
        [(1e-300, 0.3), (1e6, 1e-300), (1e6, 1e6)],
        [(0.5, 1e-12), (0.5, 0.3), (0.0, 0.0)],
        [(0.5, 0.3), (0.4, 0.2), (0.6, 0.4)],
    ]
    for number, losses in enumerate(rows):
        step(balancer, number, *by_class(losses))
        state = balancer_state(balancer)
        for name in ("weight", "first_moment", "second_moment"):
            assert bool(state[name].isfinite().all()), (number, name)
    for number in range(len(rows), len(rows) + 300):
        step(balancer, number, *by_class(noisy(number, opposed=1)))
    assert bool(weight(balancer).isfinite().all())
    if clip < math.inf and ratio_aux == "unweighted":
        assert float(weight(balancer)[1]) > 1


def test_the_bound_is_one_of_the_ratio() -> None:
    balancer = new(clip=2.0)
    for number, losses in enumerate(
        ([(0.5, 0.25)] * 3, [(0.9, 0.2501), (0.1, 0.2501), (0.6, 0.3)])
    ):
        step(balancer, number, *by_class(losses))
    g = balancer.phases[0][KEY].first_moment / 0.1
    assert g[:2].tolist() == pytest.approx([2 * 0.2501, -2 * 0.2501], rel=1e-9)
    assert float(g[2]) == pytest.approx((0.1 / 0.5) / (0.05 / 0.25) * 0.3, rel=1e-6)


def test_the_small_constant_keeps_away_from_zero() -> None:
    rule = new(eps=0.1, eps_mode="literal")._rule
    change = torch.tensor([-0.1, -0.05, 0.0, 0.2], dtype=torch.float64)
    for mode, expected in (
        ("literal", [0.0, 0.05, 0.1, 0.3]),
        ("signed", [-0.2, -0.15, 0.1, 0.3]),
        ("clip", [-0.1, -0.1, 0.1, 0.2]),
    ):
        found = attrs.evolve(rule, eps_mode=mode).away_from_zero(change)
        assert found.tolist() == pytest.approx(expected, abs=1e-15)


# Settings and input


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"eps": 0.0}, "eps"),
        ({"clip": 0.0}, "clip"),
        ({"every": 0}, "every"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"warmup": 1.0}, "warmup"),
        ({"warmup": 0.5, "swap_at": 0.5}, "swap_at"),
        ({"bins": 1}, "bins"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=rf"balancer\.{named}: .* out of range"):
        new(**settings)


@pytest.mark.parametrize(
    ("tasks", "settings", "told"),
    [
        (TASKS, {"main": "depht"}, "balancer.main: no task named 'depht'.*did you mean 'depth'"),
        (TASKS, {"auxiliary": ("part",)}, "balancer.auxiliary: no task named 'part'"),
        (TASKS, {"auxiliary": ("depth",)}, "balancer.auxiliary: depth is the main task"),
        ((DEPTH,), {}, "no task beside depth has classes"),
        (
            (DEPTH, Task(name="normals", kind="normals", channels=3)),
            {"auxiliary": ("normals",)},
            "normals cannot be auxiliary to depth",
        ),
        (
            (DEPTH, Task(name="scene", kind="classification", channels=3)),
            {"auxiliary": ("scene",)},
            "scene cannot be auxiliary to depth",
        ),
        (
            (Task(name="normals", kind="normals", channels=3), SEGMENTATION),
            {"main": "normals", "swap_at": 0.5},
            "normals cannot be auxiliary to segmentation",
        ),
    ],
)
def test_tasks_that_do_not_fit_are_named(
    tasks: Sequence[Task], settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        new(tasks, **settings)


def test_a_loss_without_a_value_per_place_is_named() -> None:
    batch = drawn(0)
    maps = some_maps(batch, 0)
    for name in maps:
        context = BalancerContext(
            tasks=tuple(maps),
            present=tuple(maps),
            maps={n: m for n, m in maps.items() if n != name},
            batch=batch,
        )
        with pytest.raises(UsageError, match=f"of the loss of {name}; .* choose another one"):
            new().transform(reduced(maps, batch), context)


def test_grids_that_differ_are_named() -> None:
    batch = drawn(0)
    maps = some_maps(batch, 0)
    maps["depth"] = maps["depth"].detach()[:, ::2].requires_grad_()
    context = BalancerContext(tasks=tuple(maps), present=tuple(maps), maps=maps, batch=batch)
    with pytest.raises(UsageError, match="depth and segmentation are on different grids"):
        new().transform({n: m.mean() for n, m in maps.items()}, context)


# On other devices


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_no_step_waits_for_the_gpu() -> None:
    device = torch.device("cuda")
    balancer, near = new(alpha=0.1).to(device), new(alpha=0.1)
    for number in range(6):
        batch = drawn(number)
        maps = some_maps(batch, number)
        far = {n: m.detach().to(device).requires_grad_() for n, m in maps.items()}
        step(near, number, batch, maps)
        there = batch.to(device)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(balancer, number, there, far)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(weight(balancer).cpu(), weight(near), rtol=1e-9, atol=0)
