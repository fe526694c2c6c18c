"""Compiling the backbone, also for balancers that need a backward pass per task."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from mtlcore.learner import Learner


def compile_backbone(learner: Learner) -> None:
    """Let torch.compile compile the backbone of a learner when it is first called.

    Its code writes over what one backward pass has read (donated buffers). A balancer of task
    gradients needs a pass per task: then its code must be made otherwise (see
    `backward_passes_allowed`) and must not come from torch's cache on disk, whose keys do not tell
    the two apart.

    Args:
        learner: Whose balancing says which code is needed.
    """
    backbone = learner.model.backbone
    if learner.balancing.finisher is None:
        backbone.compile()
    else:
        backbone.compile(backend=_without_caches)


def _without_caches(graph: Any, inputs: Sequence[Tensor]) -> Any:
    """Compile as torch.compile does by default, with nothing read from its caches on disk."""
    from torch._inductor import config  # imports torch's compiler
    from torch._inductor.compile_fx import compile_fx

    disabled = {"force_disable_caches": True}
    with config.patch(disabled):
        # Once more for the backward pass, which is compiled when it is first taken.
        return compile_fx(graph, inputs, config_patches=disabled)


def backward_passes_allowed(learner: Learner) -> AbstractContextManager[object]:
    """Return a context for a step, in which a compiled backbone takes a backward pass per task.

    Args:
        learner: That takes the step.
    """
    compiled = learner.model.backbone._compiled_call_impl is not None
    if not compiled or learner.balancing.finisher is None:
        return nullcontext()
    from torch._functorch import config  # imports much of torch's compiler

    allowed: AbstractContextManager[object] = config.patch(donated_buffer=False)
    return allowed
