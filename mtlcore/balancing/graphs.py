"""What autograd is asked: gradients of losses, and the parameters that a loss reaches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, cast

import attrs
import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge
from torch.nn import Parameter

from mtlcore.balancing.products import Row
from mtlcore.errors import UsageError


@attrs.define
class _Reached:
    """What a loss reaches through its graph.

    Args:
        leaves: Each once, in the order of the graph; nearly all are parameters.
        compiled: Functions that torch.compile made, with the leaves (by `id`) that each reads.
        checkpoints: Whether there is a reentrant checkpoint, whose parameters the graph hides.
    """

    leaves: list[Parameter] = attrs.field(factory=list)
    compiled: dict[Any, set[int]] = attrs.field(factory=dict)
    checkpoints: bool = False


def _reached(loss: Tensor) -> _Reached:
    found = _Reached([cast(Parameter, loss)] if loss.grad_fn is None else [])
    waiting: list[Any] = [] if loss.grad_fn is None else [loss.grad_fn]
    seen = {None, *waiting}
    for node in waiting:
        following = node.next_functions
        if not following and hasattr(node, "variable"):
            found.leaves.append(node.variable)
        elif isinstance(node, BackwardCFunction):
            name = type(node).__name__
            found.checkpoints = found.checkpoints or name == "CheckpointFunctionBackward"
            if name == "CompiledFunctionBackward":
                read = (getattr(other, "variable", None) for other, _ in following)
                found.compiled[node] = {id(leaf) for leaf in read if leaf is not None}
        for other, _ in following:
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return found


def all_leaves(losses: Iterable[Tensor]) -> list[Parameter]:
    """Return the leaves that the losses reach through their graphs, each once."""
    return list({id(leaf): leaf for loss in losses for leaf in _reached(loss).leaves}.values())


def own_leaves(
    losses: Mapping[str, Tensor], shared: Sequence[Tensor], *, several_passes: bool
) -> tuple[dict[str, list[Parameter]], list[Parameter]]:
    """Return what losses reach through their graphs beside the shared parameters.

    Args:
        losses: A scalar per task.
        shared: The parameters that several of them may reach.
        several_passes: Whether a backward pass per task will run through what they share.

    Returns:
        Per task, the leaves that its loss alone reaches; and those that several reach and that are
        no parameters, such as inputs that require gradients.

    Raises:
        UsageError: Two losses reach a parameter that is not shared, one runs through a reentrant
            checkpoint, or both through what torch.compile made for a single pass.
    """
    reached = {task: _reached(loss) for task, loss in losses.items()}
    for task, found in reached.items():
        if found.checkpoints:
            raise _reentrant(task)
    known = set(map(id, shared))
    readers: dict[int, list[str]] = {}
    leaves = {id(leaf): leaf for found in reached.values() for leaf in found.leaves}
    for task, found in reached.items():
        for leaf in found.leaves:
            readers.setdefault(id(leaf), []).append(task)
    common = []
    for key, tasks in readers.items():
        if len(tasks) > 1 and key not in known:
            if isinstance(leaves[key], Parameter):
                raise _not_named(leaves[key], reached, tasks)
            common.append(leaves[key])
    functions = [found.compiled.keys() for found in reached.values()]
    if several_passes and any(a & b for a, b in combinations(functions, 2)):
        _check_compiler()
    known.update(map(id, common))
    own = {t: [x for x in found.leaves if id(x) not in known] for t, found in reached.items()}
    return own, common


def refuse_reentrant(losses: Mapping[str, Tensor]) -> None:
    """Refuse losses that run through a reentrant checkpoint.

    Raises:
        UsageError: One does; the message names its task.
    """
    for task, loss in losses.items():
        if _reached(loss).checkpoints:
            raise _reentrant(task)


def refuse_sparse(parameters: Sequence[Tensor], gradients: Row) -> None:
    """Refuse gradients that are not dense.

    Raises:
        UsageError: One is sparse; the message gives the shape of its parameter.
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and gradient.layout != torch.strided:
            raise UsageError(
                f"the gradient of a parameter of shape {tuple(parameter.shape)} is sparse, and "
                "gradients of tasks are added up and compared in dense form; make it dense, as "
                "nn.Embedding(sparse=False) does"
            )


def _reentrant(task: str) -> UsageError:
    return UsageError(
        f"the loss of {task!r} runs through torch.utils.checkpoint with use_reentrant=True, which "
        "hides the parameters within and cannot give gradients of single tasks; pass "
        "use_reentrant=False, or choose a balancer of losses"
    )


def _not_named(leaf: Tensor, reached: Mapping[str, _Reached], tasks: Sequence[str]) -> UsageError:
    first, second = tasks[:2]
    both = reached[first].compiled.keys() & reached[second].compiled.keys()
    if any(id(leaf) in reached[first].compiled[node] for node in both):
        why = (
            "one function that torch.compile made gives both, and its graph does not tell whose "
            "parameter it is: compile the trunk and each head by themselves, or name it"
        )
    else:
        why = "its gradient would not be balanced: name every parameter that several tasks use"
    return UsageError(
        f"the losses of {first} and {second} both reach a parameter of shape {tuple(leaf.shape)} "
        f"that is not in `shared_params`; {why}"
    )


def gradients(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor | GradientEdge],
    retain_graph: bool,
    grad_outputs: Sequence[Tensor] | None = None,
) -> Row:
    """Call `torch.autograd.grad`; None for an input, or edge, that no output reaches.

    Raises:
        UsageError: The graph holds what torch cannot go through more than once.
    """
    if not inputs:
        return []
    try:
        # torch's annotation knows lists of either, not of both.
        found: Row = torch.autograd.grad(
            outputs, cast(Any, inputs), grad_outputs, retain_graph, allow_unused=True
        )
        return found
    except RuntimeError as error:
        explained = _explained(error)
        if explained is None:
            raise
        raise explained from error


def learning(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Return the parameters that require gradients, each once."""
    return list({id(p): p for p in parameters if p.requires_grad}.values())


def _check_compiler() -> None:
    """Refuse compiled functions whose backward pass may write over what the next one reads."""
    from torch._functorch import config as autograd  # much of torch's compiler, which is in use
    from torch._inductor import config as inductor

    if autograd.donated_buffer or not inductor.force_disable_caches:
        raise UsageError(_COMPILED)


_COMPILED = (
    "torch.compile has compiled what several tasks share for a single backward pass, and the "
    "balancer needs one per task, of which all but the first could be wrong; leave it uncompiled "
    "(mtl run compiles it rightly, training.compile), choose a balancer of losses or the scope "
    "'features', or set both torch._functorch.config.donated_buffer = False and "
    "torch._inductor.config.force_disable_caches = True before it is compiled"
)


def _explained(error: RuntimeError) -> UsageError | None:
    """Return what a person can do about an error of a backward pass, if that is known."""
    # torch has no types of its own for these.
    if "donated buffer" in str(error):
        return UsageError(_COMPILED)
    return _reentrant("a task") if "use_reentrant" in str(error) else None
