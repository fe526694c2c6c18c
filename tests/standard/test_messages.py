"""Messages between tasks: who hears whom, and what."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from mtlcore.errors import UsageError
from mtlcore.standard.messages import Gate, Messages, final_tasks
from mtlcore.testing import TINY_TASKS

NAMES = [task.name for task in TINY_TASKS]


def conv(channels: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, 3, padding=1)


def test_a_gate_multiplies_two_convolutions() -> None:
    gate, maps = Gate(3, conv), torch.randn(2, 3, 4, 5)
    expected = gate.message(maps) / (1 + (-gate.attention(maps)).exp())
    torch.testing.assert_close(gate(maps), expected)


def test_a_receiver_adds_what_all_others_send() -> None:
    messages = Messages(TINY_TASKS, TINY_TASKS[:2], partial(conv, 3, 3))
    maps = {name: torch.randn(1, 3, 4, 4) for name in NAMES}
    pairs = {to: [*others] for to, others in messages.into.items()}
    first, second, third = (task.key for task in TINY_TASKS)
    assert pairs == {first: [second, third], second: [first, third]}
    networks = messages.into[second]
    sent = [networks[first](maps[NAMES[0]]), networks[third](maps[NAMES[2]])]
    for one, other in zip(messages.received(NAMES[1], maps), sent, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(messages(NAMES[1], maps), maps[NAMES[1]] + sum(sent))
    own = {id(p) for p in messages.parameters_into(NAMES[1])}
    assert own == {id(p) for p in networks.parameters()}


def test_a_lone_task_keeps_its_map() -> None:
    messages = Messages(TINY_TASKS[:1], TINY_TASKS[:1], partial(conv, 3, 3))
    maps = {NAMES[0]: torch.randn(1, 3, 4, 4)}
    assert messages(NAMES[0], maps) is maps[NAMES[0]]
    assert not [*messages.parameters()]


def test_final_tasks_are_those_that_are_not_auxiliary() -> None:
    assert final_tasks(TINY_TASKS, ()) == [*TINY_TASKS]
    assert final_tasks(TINY_TASKS, NAMES[1:]) == [TINY_TASKS[0]]
    with pytest.raises(UsageError, match=r"model\.backbone\.auxiliary: it names all tasks"):
        final_tasks(TINY_TASKS, NAMES)
    with pytest.raises(UsageError, match=r"model\.backbone\.auxiliary: no task named 'edges'"):
        final_tasks(TINY_TASKS, ["edges"])
