"""What a balancer is told of a step, and what comes of its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import attrs
import torch
from torch import Tensor

from mtlcore.data import Batch
from mtlcore.distributed import SINGLE_PROCESS, Distributed

Scope = Literal["shared", "features", "last_shared"]
Status = Literal["converged", "degenerate", "not finite"]


@attrs.define(kw_only=True)
class BalancerContext:
    """What a balancer may know of the step it works in.

    Args:
        tasks: all tasks of the run.
        generator: the only source of randomness, the same on every rank.
        step: number of the step, from 0.
        epoch: number of the epoch, from 0.
        progress: part of the run done, 0 to 1.
        present: the tasks that this step has losses for.
        losses: their mean raw losses; empty until gradients are balanced.
        maps: elementwise losses of view 0 where the balancer `needs_maps`.
        batch: the batch they are of.
        reevaluate: computes the present tasks' losses once more at the updated parameters.
        distributed: the processes that train together; each sees its own part of a step.
    """

    tasks: tuple[str, ...]
    generator: torch.Generator | None = None
    step: int = 0
    epoch: int = 0
    progress: float = 0.0
    present: tuple[str, ...] = ()
    losses: dict[str, float] = attrs.field(factory=dict)
    maps: Mapping[str, Tensor] = attrs.field(factory=dict)
    batch: Batch | None = None
    reevaluate: Callable[[], dict[str, float]] | None = None
    distributed: Distributed = SINGLE_PROCESS


@attrs.frozen(kw_only=True)
class BalancingResult:
    """What a step's balancing decided.

    Args:
        weights: per present task, of its row in the shared update; empty for a sum of losses.
        heads: the same at the parameters of one task alone; empty where nothing new was decided.
        cosines: per pair of present tasks, of their gradients; empty without a Gramian.
        status: of the balancer's solver; "not finite" means that nothing may be learnt from.
    """

    weights: dict[str, float] = attrs.field(factory=dict)
    heads: dict[str, float] = attrs.field(factory=dict)
    cosines: dict[tuple[str, str], float] = attrs.field(factory=dict)
    status: Status = "converged"
