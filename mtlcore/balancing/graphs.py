"""What autograd is asked: gradients of losses, and the parameters that a loss reaches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from mtlcore.balancing.products import Row
from mtlcore.errors import UsageError


def _leaves(loss: Tensor) -> list[Parameter]:
    """Return the leaves that a loss reaches, each once, in the order of its graph."""
    leaves = []
    waiting: list[Any] = [] if loss.grad_fn is None else [loss.grad_fn]
    seen = {None, *waiting}
    for node in waiting:
        following = node.next_functions
        if not following and hasattr(node, "variable"):
            leaves.append(node.variable)
        for other, _ in following:
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return leaves


def own_leaves(
    losses: Mapping[str, Tensor], shared: Sequence[Parameter]
) -> dict[str, list[Parameter]]:
    """Return, per task, the parameters beside `shared` that its loss reaches through the graph.

    Raises:
        UsageError: Two losses reach one of them.
    """
    common = set(map(id, shared))
    own = {task: [p for p in _leaves(x) if id(p) not in common] for task, x in losses.items()}
    seen: dict[int, str] = {}
    for task, parameters in own.items():
        for parameter in parameters:
            first = seen.setdefault(id(parameter), task)
            if first != task:
                raise UsageError(
                    f"the losses of {first} and {task} both reach a parameter of shape "
                    f"{tuple(parameter.shape)} that is not in `shared_params`; its gradient would "
                    "not be balanced: name every parameter that several tasks use"
                )
    return own


def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    retain_graph: bool,
    grad_outputs: Sequence[Tensor] | None = None,
) -> Row:
    """Call `torch.autograd.grad`; None for an input that no output reaches."""
    if not inputs:
        return []
    return torch.autograd.grad(outputs, inputs, grad_outputs, retain_graph, allow_unused=True)


def learning(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Return the parameters that require gradients, each once."""
    return list({id(p): p for p in parameters if p.requires_grad}.values())
