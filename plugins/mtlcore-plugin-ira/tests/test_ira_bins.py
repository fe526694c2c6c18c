"""Bins of equal frequency for an auxiliary task without classes."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext
from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.tasks import Task
from mtlcore.testing import tiny_batch
from mtlcore_ira.balancer import IRA
from mtlcore_ira.bins import Bins

TASKS = (
    Task(name="segmentation", kind="segmentation", channels=3),
    Task(name="depth", kind="depth", channels=1, unit="m"),
)


def depth_of(values: Tensor, valid: Tensor | None = None) -> Batch:
    """A batch with these depths, (B, H, W)."""
    batch = tiny_batch(len(values), tasks=TASKS, size=tuple(values.shape[1:]), masked=0.0)
    known = torch.ones(values.shape).bool() if valid is None else valid
    return attrs.evolve(
        batch,
        targets={**batch.targets, "depth": values[:, None]},
        valid={**batch.valid, "depth": known},
    )


def fitted(count: int, *batches: Batch) -> Bins:
    balancer = IRA(main="segmentation", bins=count)
    balancer.prepare(TASKS, batches)
    bins = balancer.bins["task_depth"]
    assert isinstance(bins, Bins)
    return bins


def test_bins_hold_equally_many_training_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 10, 10, generator=generator).square() * 9 + 1
    bins = fitted(5, depth_of(values[:1]), depth_of(values[1:]))
    classes = bins.classes(values[:, None])
    assert classes.shape == values.shape
    assert classes.flatten().bincount().tolist() == [60] * 5
    order = values.flatten().argsort()
    assert bool((classes.flatten()[order].diff() >= 0).all())


def test_only_valid_labels_count() -> None:
    values = torch.arange(1.0, 41.0).reshape(1, 5, 8)
    valid = values <= 20
    bins = fitted(2, depth_of(values, valid))
    assert bins.edges.tolist() == [11.0]
    assert bins.names() == ["1: to 11 m", "2: from 11 m"]


def test_labels_of_large_images_are_thinned_out_evenly() -> None:
    values = torch.linspace(1, 101, 2 * 300 * 200).reshape(2, 300, 200)
    bins = fitted(4, depth_of(values))
    assert bins.edges.tolist() == pytest.approx([26, 51, 76], abs=0.05)


def test_repeated_values_leave_bins_empty() -> None:
    values = torch.ones(1, 5, 8)
    values[0, 0] = 2
    bins = fitted(4, depth_of(values))
    assert bins.edges.tolist() == [1, 1, 1]
    assert set(bins.classes(values[:, None]).flatten().tolist()) == {3}
    assert len(set(bins.names())) == 4


def test_names() -> None:
    values = torch.linspace(0.5, 12.0, 400).reshape(1, 20, 20)
    names = fitted(3, depth_of(values)).names()
    assert names == ["1: to 4.33 m", "2: 4.33 to 8.17 m", "3: from 8.17 m"]


def test_data_is_read_once_and_only_where_it_is_needed() -> None:
    reads = []

    class Once:
        def __iter__(self) -> Iterator[Batch]:
            reads.append(1)
            yield depth_of(torch.rand(2, 5, 8) + 1)

    IRA(main="depth").prepare(TASKS, Once())
    assert not reads
    balancer = IRA(main="segmentation", bins=3)
    balancer.prepare(TASKS, Once())
    edges = balancer.bins["task_depth"].edges.clone()
    balancer.prepare(TASKS, Once())
    assert len(reads) == 1
    assert torch.equal(edges, balancer.bins["task_depth"].edges)


def test_edges_are_part_of_the_state() -> None:
    one, other = (IRA(main="segmentation", bins=3) for _ in range(2))
    one.prepare(TASKS, [depth_of(torch.rand(2, 5, 8) + 1)])
    other.prepare(TASKS)  # as for a trained run, whose data nobody opens
    other.load_state_dict(one.state_dict())
    values = torch.rand(1, 1, 4, 4) + 1
    found = [b.bins["task_depth"].classes(values) for b in (one, other)]  # type: ignore[operator]
    assert torch.equal(*found)
    assert one.current_weights() == other.current_weights()


def test_without_training_labels_there_are_no_bins() -> None:
    balancer = IRA(main="segmentation", bins=3)
    nothing = torch.zeros(1, 5, 8).bool()
    balancer.prepare(TASKS, [depth_of(torch.ones(1, 5, 8), nothing)])
    maps = {n: torch.ones(1, 5, 8, requires_grad=True) for n in ("segmentation", "depth")}
    batch = depth_of(torch.ones(1, 5, 8))
    context = BalancerContext(tasks=tuple(maps), present=tuple(maps), maps=maps, batch=batch)
    with pytest.raises(UsageError, match="no training label of depth was seen to fit its bins"):
        balancer.transform({name: m.mean() for name, m in maps.items()}, context)


def test_a_vector_of_one_value() -> None:
    tasks = (
        Task(name="age", kind="regression", channels=1),
        Task(name="height", kind="regression", channels=1),
    )
    balancer = IRA(main="age", alpha=0.1, bins=2)
    batches = [tiny_batch(32, seed=seed, tasks=tasks) for seed in range(4)]
    balancer.prepare(tasks, batches)
    for number, batch in enumerate(batches):
        maps = {n: torch.rand(32, 1, requires_grad=True) for n in ("age", "height")}
        context = BalancerContext(
            tasks=tuple(maps), present=tuple(maps), step=number, maps=maps, batch=batch
        )
        losses = {n: (m * batch.valid[n]).sum() / batch.valid[n].sum() for n, m in maps.items()}
        balancer.transform(losses, context)
        balancer.after_step(context)
    assert all(weight != 1 for weight in balancer.current_weights()["height"].values())
