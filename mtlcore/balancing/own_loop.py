"""What a loop of somebody's own hands to a balancer, looked at before anything is written."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from mtlcore.balancing.finite import all_finite
from mtlcore.errors import UsageError

_LEAVE_OUT = "leave a task without labels out of the losses of the batch"
_Prepare = TypeVar("_Prepare", bound=Callable[..., None])


def refuse_several_processes() -> None:
    """Refuse to balance where several processes train together.

    Raises:
        UsageError: `torch.distributed` connects several processes. A balancer sees the gradients
            of its own; DistributedDataParallel and FSDP would not see those of single tasks.
    """
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    if together and torch.distributed.get_world_size() > 1:
        raise UsageError(
            f"balancer.backward: {torch.distributed.get_world_size()} processes train together, "
            "and it balances the gradients of one: DistributedDataParallel would not see them, and "
            "every process would get its own. Train with torchrun ... -m mtlcore run, or with "
            "Learner(distributed=...), which add up gradients over processes; or in one process"
        )


def scalar_losses(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the losses as tensors without dimensions.

    Args:
        losses: What the caller gave, by task.

    Raises:
        UsageError: A loss is no tensor, no real scalar, or has no graph; the message names its
            task.
    """
    if not isinstance(losses, Mapping):
        raise UsageError(
            "balancer.backward: losses must be a mapping from a task's name to its loss, not "
            f"{type(losses).__name__}"
        )
    for task, loss in losses.items():
        if not isinstance(loss, Tensor):
            raise UsageError(
                f"balancer.backward: the loss of {task!r} is {loss!r}, not a tensor; {_LEAVE_OUT}"
            )
        if loss.numel() != 1 or loss.is_complex():
            raise UsageError(
                f"balancer.backward: the loss of {task!r} is of shape {tuple(loss.shape)} and "
                f"{loss.dtype}, not a real scalar; reduce it, for instance by its mean"
            )
        if not loss.requires_grad:
            raise UsageError(
                f"balancer.backward: the loss of {task!r} has no graph, so nothing can learn from "
                f"it (a constant, detached, or computed under torch.no_grad()); {_LEAVE_OUT}"
            )
    return {task: loss.reshape(()) for task, loss in losses.items()}


def given_parameters(parameters: Iterable[Any], name: str) -> list[Parameter]:
    """Return the parameters that the caller gave.

    Args:
        parameters: What should be parameters.
        name: Of the argument, for the message.

    Raises:
        UsageError: Something else is among them.
    """
    found = list(parameters)
    for one in found:
        if not isinstance(one, Tensor) or not one.is_leaf:
            what = "a tensor that was computed" if isinstance(one, Tensor) else type(one).__name__
            raise UsageError(
                f"balancer.backward: {name} holds {what}; give parameters, such as "
                "trunk.parameters()"
            )
    return found


def remembering(prepare: _Prepare) -> _Prepare:
    """Let `prepare` of a balancer also keep which tasks it was told of, in `prepared`."""

    @functools.wraps(prepare)
    def remember(self: Any, tasks: Sequence[Any], *arguments: Any, **named: Any) -> None:
        prepare(self, tasks, *arguments, **named)
        self.prepared = self.prepared | {task.name for task in tasks}

    return remember  # type: ignore[return-value]


@contextmanager
def set_aside(leaves: Sequence[Tensor]) -> Iterator[Callable[[], bool]]:
    """Put gradients aside while others are computed; afterwards `.grad` holds the sum of both.

    Args:
        leaves: Whose gradients.

    Yields:
        A function to call after the backward pass: whether the new gradients are finite. If not,
        or if it was not called, they are dropped.
    """
    before = [leaf.grad for leaf in leaves]
    finite = False

    def are_finite() -> bool:
        nonlocal finite
        finite = all_finite([leaf.grad for leaf in leaves if leaf.grad is not None])
        return finite

    for leaf in leaves:
        leaf.grad = None
    try:
        yield are_finite
    finally:
        with torch.no_grad():
            for leaf, old in zip(leaves, before, strict=True):
                new = leaf.grad
                if old is None or new is None or not finite:
                    leaf.grad = new if finite and old is None else old
                else:
                    leaf.grad = old + new if old.is_sparse else old.add_(new)
