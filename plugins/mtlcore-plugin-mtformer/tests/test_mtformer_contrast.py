"""The contrast keeps its contract, is the equation, and remembers what steps that count made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

import mtlcore
from mtlcore.balancing import BalancerContext
from mtlcore.data import Batch
from mtlcore.distributed import Distributed
from mtlcore.features import FeatureInfo, Features
from mtlcore.storage import load_checkpoint
from mtlcore.tasks import Task
from mtlcore.testing import (
    TINY_TASKS,
    CrossTaskLossContract,
    assert_settings_are_checked,
    tiny_batch,
    tiny_learner,
)
from mtlcore_mtformer.contrast import TaskContrast
from mtlcore_mtformer.memory import NEW, Memory, number_of

NAMES = [task.name for task in TINY_TASKS]
TWO = TINY_TASKS[:2]
INFO = FeatureInfo((6,), (2,))
CONTEXT = BalancerContext(tasks=tuple(NAMES))
SMALL: dict[str, Any] = {"negatives": 3, "samples": 5, "outputs": 4}


class TestTaskContrast(CrossTaskLossContract):
    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> TaskContrast:
        return TaskContrast(tasks, features, negatives=7, samples=9, outputs=4)


class TestTaskContrastWithAMemorySmallerThanABatch(CrossTaskLossContract):
    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> TaskContrast:
        return TaskContrast(tasks, features, negatives=7, samples=3, outputs=4)


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def named(*keys: str, views: Sequence[int] | None = None) -> Batch:
    return attrs.evolve(tiny_batch(len(keys), views=views), keys=keys)


def maps(count: int, tasks: Sequence[str] = NAMES, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    own = {
        task: (torch.randn(count, 6, 4, 6, generator=generator).requires_grad_(),) for task in tasks
    }
    return Features(per_task=own)


def predictions(features: Features) -> dict[str, Tensor]:
    return dict.fromkeys(features.per_task, torch.zeros(()))


def term(loss: TaskContrast, batch: Batch, features: Features) -> Tensor:
    return loss(batch, features, predictions(features))["task_contrast"]


def vectors(loss: TaskContrast, features: Features) -> dict[str, Tensor]:
    found = {}
    for task, key in ((task.name, task.key) for task in TINY_TASKS if task.key in loss.projectors):
        first, _, second = loss.projectors[key]
        hidden = first(features.per_task[task][0].mean((2, 3))).clamp_min(0)
        v = second(hidden)
        found[task] = (v / v.square().sum(1, keepdim=True).sqrt()).detach()
    return found


def by_hand(
    loss: TaskContrast,
    features: Features,
    positives: Mapping[str, Tensor],
    constants: Mapping[tuple[str, str], float] | None = None,
) -> tuple[float, dict[tuple[str, str], float]]:
    """The term and the constants, number by number; the random stream is where the loss's was."""
    count = len(next(iter(positives.values())))
    drawn = torch.randint(5, (count, 3))
    v, total, found = vectors(loss, features), 0.0, dict(constants or {})
    keys = {task.name: task.key for task in TINY_TASKS}
    for one in v:
        for other in v:
            if one == other:
                continue
            memory = loss.memories[keys[other]].vectors
            powers = []
            for i in range(count):
                rows = [positives[other][i], *(memory[n] for n in drawn[i].tolist())]
                powers.append([torch.exp((v[one][i] * x).sum() / 0.5).item() for x in rows])
            if (one, other) not in found:
                found[one, other] = 5 * sum(map(sum, powers)) / (4 * count)
            for row in powers:
                p = torch.tensor(row, dtype=torch.float64) / found[one, other]
                h = p / (p + 3 / 5)
                total -= (h[0].log() + (1 - h[1:]).log().sum()).item() / count
    return total, found


def test_the_term_is_the_equation() -> None:
    loss = TaskContrast(TWO, INFO, weight=0.3, temperature=0.5, momentum=0.8, **SMALL)
    names = [task.name for task in TWO]
    first, second = maps(2, names, seed=1), maps(3, names, seed=2)
    torch.manual_seed(5)
    found = term(loss, named("a", "b"), first)
    torch.manual_seed(5)
    # Nobody is remembered yet: what the other task makes of the image is all there is.
    seen = vectors(loss, first)
    expected, constants = by_hand(loss, first, seen)
    assert found.item() == pytest.approx(0.3 * expected, rel=1e-5)
    loss.after_step(CONTEXT)
    torch.manual_seed(6)
    again = term(loss, named("b", "c", "a"), second)
    torch.manual_seed(6)
    now = vectors(loss, second)
    positives = {task: torch.stack([seen[task][1], now[task][1], seen[task][0]]) for task in seen}
    expected, _ = by_hand(loss, second, positives, constants)
    assert again.item() == pytest.approx(0.3 * expected, rel=1e-5)
    loss.after_step(CONTEXT)
    for task in TWO:
        memory = loss.memories[task.key]
        mixed = 0.8 * seen[task.name][1] + 0.2 * now[task.name][0]
        known, is_known = memory.find(torch.tensor([number_of(key) for key in ("b", "c", "x")]))
        assert is_known.tolist() == [True, True, False]
        torch.testing.assert_close(known[0], mixed / mixed.norm())
        torch.testing.assert_close(known[1], now[task.name][1])


def test_gradients_reach_both_tasks_and_no_memory() -> None:
    loss, features = TaskContrast(TINY_TASKS, INFO, **SMALL), maps(2)
    value = term(loss, named("a", "b"), features)
    loss.after_step(CONTEXT)  # rows change before the backward pass
    value.backward()
    for (x,) in features.per_task.values():
        assert x.grad is not None and bool(x.grad.any())
    assert not any(buffer.requires_grad for buffer in loss.buffers())


def test_views_other_than_the_first_and_repeated_images_are_left_out() -> None:
    loss = TaskContrast(TINY_TASKS, INFO, **SMALL)
    features = maps(4)
    torch.manual_seed(3)
    found = term(loss, named("a", "b", "a", "b", views=(0, 0, 0, 1)), features)
    torch.manual_seed(3)
    alone = Features(per_task={t: (x[:2],) for t, (x,) in features.per_task.items()})
    assert torch.equal(found, term(loss, named("a", "b"), alone))


def test_the_main_map_or_vector_is_read() -> None:
    loss = TaskContrast(TINY_TASKS, FeatureInfo((3, 6), (4, 2), main_map=1), **SMALL)
    features = maps(2)
    features.shared = (torch.zeros(2, 3, 2, 3),)
    torch.manual_seed(3)
    found = term(loss, named("a", "b"), features)
    pooled = {task: (x.mean((2, 3)),) for task, (x,) in features.per_task.items()}
    torch.manual_seed(3)
    assert torch.allclose(
        found, term(loss, named("a", "b"), Features(shared=features.shared, per_task=pooled))
    )


def test_a_lone_task_and_a_weight_of_nothing_have_no_term() -> None:
    batch = named("a", "b")
    for loss in (TaskContrast(TINY_TASKS[:1], INFO), TaskContrast(TINY_TASKS, INFO, weight=0.0)):
        assert not [*loss.needs(batch, NAMES)]
        assert loss(batch, maps(2), predictions(maps(2))) == {}
        loss.after_step(CONTEXT)
        assert not [*loss.parameters()]
    loss = TaskContrast(TINY_TASKS, INFO, **SMALL)
    assert not [*loss.needs(batch, NAMES[:1])]
    assert loss(batch, maps(2, NAMES[:1]), predictions(maps(2, NAMES[:1]))) == {}


def test_a_task_that_stopped_is_remembered_as_it_was() -> None:
    loss = TaskContrast(TINY_TASKS, INFO, **SMALL)
    term(loss, named("a", "b"), maps(2))
    loss.after_step(CONTEXT)
    before = {key: memory.vectors.clone() for key, memory in loss.memories.items()}
    term(loss, named("a", "b"), maps(2, NAMES[1:], seed=4))
    loss.after_step(CONTEXT)
    changed = [not torch.equal(before[key], m.vectors) for key, m in loss.memories.items()]
    assert changed == [False, True, True]


def test_only_after_a_step_is_anything_remembered() -> None:
    """And evaluation, and passes with other buffers, leave nothing behind."""
    loss = TaskContrast(TINY_TASKS, INFO, **SMALL)
    saved = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    buffers = {name: buffer.clone() for name, buffer in loss.named_buffers()}
    features = maps(2)
    arguments = (named("a", "b"), features, predictions(features))
    torch.func.functional_call(loss, buffers, arguments)
    term(loss.eval(), named("a", "b"), features)
    loss.after_step(CONTEXT)
    same = [
        torch.equal(saved[name].nan_to_num(7), tensor.nan_to_num(7))
        for name, tensor in loss.state_dict().items()
        if "constants" not in name
    ]
    assert all(same) and len(same) > 9


def test_a_skipped_step_leaves_nothing_behind() -> None:
    loss = TaskContrast(TINY_TASKS, FeatureInfo((6,), (2,), main_map=0), **SMALL)
    learner = tiny_learner(cross_task=[loss])
    kept = [(buffer, buffer.clone()) for buffer in learner.cross_task.buffers()]
    learner(tiny_batch(2), NAMES)
    for buffer, before in kept:  # as the core does
        buffer.copy_(before)
    loss.after_step(CONTEXT)
    assert all(bool((m.owners == -1).all()) for m in loss.memories.values())
    assert bool(loss.constants.isnan().all())


def test_a_full_memory_forgets_who_came_first() -> None:
    memory = Memory(2, 3, 0.5)
    remember(memory, "a", "b", "a")
    assert held(memory) == {"a", "b"}
    remember(memory, "c")
    assert held(memory) == {"b", "c"}
    remember(memory, "b", "d", "e")  # more than there are rows, and the last ones stay
    assert held(memory) == {"d", "e"}
    assert torch.allclose(memory.vectors.norm(dim=1), torch.ones(2))
    state = memory.state_dict()
    again = Memory(2, 3, 0.5)
    again.load_state_dict(state)
    for one in (memory, again):
        torch.manual_seed(2)
        remember(one, "f")
    assert torch.equal(memory.vectors, again.vectors) and held(again) == {"e", "f"}


def held(memory: Memory) -> set[str]:
    return {key for key in "abcdef" if number_of(key) in memory.owners.tolist()}


def remember(memory: Memory, *keys: str) -> None:
    memory.offer(torch.tensor([number_of(key) for key in keys]), torch.randn(len(keys), 3))
    memory.remember(*memory.offered())


def test_several_batches_of_a_step_are_remembered() -> None:
    memory = Memory(6, 3, 0.5)
    for key in "abc":
        memory.offer(torch.tensor([number_of(key)]), torch.randn(1, 3))
    owners, found = memory.offered()
    assert owners == [number_of(key) for key in "abc"] and found.shape == (3, 3)
    assert memory.offered()[0] == []
    memory.offer(torch.arange(NEW + 5), torch.randn(NEW + 5, 3))
    assert memory.offered()[0] == [*range(NEW)]


def test_of_several_processes_all_remember_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> TaskContrast:
        torch.manual_seed(1)
        return TaskContrast(TINY_TASKS, INFO, **SMALL)

    ranks, given = [made(), made()], []
    for rank, keys in enumerate([("a", "b"), ("c",)]):
        features = maps(len(keys), seed=rank)
        term(ranks[rank], named(*keys), features)
        own = [memory.offered() for memory in ranks[rank].memories.values()]
        given.append((own, ranks[rank].new_constants.clone()))
    monkeypatch.setattr(Distributed, "all_gather", lambda _self, _value: given)
    for loss in ranks:
        loss.after_step(CONTEXT)
    one, other = (dict(loss.state_dict()) for loss in ranks)
    assert all(torch.equal(one[name].nan_to_num(7), other[name].nan_to_num(7)) for name in one)
    for memory in ranks[0].memories.values():
        assert held(memory) == {"a", "b", "c"}
    expected = (given[0][1] + given[1][1]) / 2
    torch.testing.assert_close(ranks[0].constants, expected, equal_nan=True)


def test_numbers_of_keys_are_the_same_everywhere() -> None:
    assert number_of("rooms/train/17") == number_of("rooms/train/17") != number_of("rooms/train/18")
    assert 0 <= number_of("") < 2**63


def test_settings_are_checked() -> None:
    assert_settings_are_checked(
        "losses",
        "task-contrast",
        weight=[-1.0],
        negatives=[0],
        temperature=[0.0],
        momentum=[1.0, -0.1],
        outputs=[0],
        samples=[0],
    )


TINY: dict[str, Any] = {
    "device": "cpu",
    "tasks": NAMES,
    "data": {"train": 6, "val": 2, "size": [32, 32], "workers": 0, "augment": {"flip": True}},
    "model": {
        "backbone": {
            "name": "mtformer",
            "channels": 8,
            "heads": 2,
            "window": 3,
            "backbone": {"name": "unet", "width": 0.03125, "decoder": "none"},
        },
        "head": {"name": "mtformer"},
    },
    "cross_task": [{"name": "task-contrast", "weight": 1.0, **SMALL}],
    "training": {"epochs": 3, "batch_size": 2, "threads": 1},
}


def test_stopped_and_resumed_it_ends_bit_for_bit_the_same(
    stopped_and_resumed: Callable[..., tuple[Path, Path]],
) -> None:
    """With a memory that has fewer rows than there are images."""
    whole, stopped = (
        load_checkpoint(run / "checkpoints" / "last.safetensors")["learner"]
        for run in stopped_and_resumed({**TINY, "balancer": {"name": "equal"}}, 4)
    )
    assert whole.keys() == stopped.keys()
    memory = [name for name in whole if "memories" in name]
    assert {name.rpartition(".")[2] for name in memory} == {"vectors", "owners", "given"}
    for name, value in whole.items():
        if isinstance(value, Tensor):
            assert torch.equal(value.nan_to_num(7), stopped[name].nan_to_num(7)), name
    assert all(bool((whole[name] >= 0).all()) for name in memory if name.endswith("owners"))


def test_a_run_of_a_single_task(tmp_path: Path) -> None:
    mtlcore.run({**TINY, "tasks": NAMES[:1]}, out=str(tmp_path / "run"))
    assert "task_contrast" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_over_another_network_and_partial_labels(tmp_path: Path) -> None:
    """Over one whose map all tasks share, projectors alone are the tasks'."""
    unet = {"name": "unet", "width": 0.03125}
    values = {**TINY, "model": {"backbone": unet}, "data": {**TINY["data"], "labels": "one"}}
    mtlcore.run(values, out=str(tmp_path / "run"))
    assert "task_contrast" in (tmp_path / "run" / "metrics.jsonl").read_text()
