"""A residual block that a task runs, skips, or mixes with its shortcut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore.models import TaskLayer, is_exporting
from mtlcore.tasks import Task

#: Where the two logits of a policy begin, as in the authors' code: neither is likelier.
_FIRST = 0.5


@attrs.define
class Search:
    """What the blocks of a network know of the search together.

    Args:
        heat: temperature of Gumbel-softmax.
        active: how many of the last blocks have a policy; all before them run.
        learning: whether this step's loss reaches the policies.
        kept: `Task.key` -> for each block whether the task runs it; empty while that is searched.
    """

    heat: float = 1.0
    active: int = 0
    learning: bool = False
    kept: dict[str, list[bool]] = attrs.field(factory=dict)


@final
class Policy(nn.Module):
    """How likely a task is to run a block: `softmax(logits)`, of running and of skipping it."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full((2,), _FIRST))


@final
class Shortcut(nn.Module):
    """The module of a shortcut, which a block calls, and whose map is needed once more."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the map, and keep it until it is taken."""
        self._last = self.inner(x)
        return self._last

    def taken(self) -> Tensor:
        """Return the map that was computed last, and forget it."""
        assert self._last is not None
        x, self._last = self._last, None
        return x


@final
class SkippableBlock(TaskLayer):
    """A block of all tasks, and each task's policy for it.

    With the block's map F(x) and its shortcut's map s(x), a task that draws `(p, 1 - p)` goes on
    with `p F(x) + (1 - p) s(x)`. A block that is skipped for good costs its shortcut alone.

    Args:
        tasks: that have a policy.
        block: residual, shared.
        shortcut: of the block; None: it is x itself.
        left: how many blocks come from this one on, itself included.
        number: of the block, from 0 at the input.
        search: what all blocks of the network know.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        block: nn.Module,
        shortcut: Shortcut | None,
        *,
        left: int,
        number: int,
        search: Search,
    ) -> None:
        super().__init__({task.key: Policy() for task in tasks})
        self.shared = block
        # Registered within the block, and here by a list, so that its names stay the block's.
        self._shortcut = [] if shortcut is None else [shortcut]
        self._left, self._number, self._search = left, number, search

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, C, H, W) -> (B, C', H / stride, W / stride)."""
        found = self._drawn()
        if isinstance(found, bool):
            y: Tensor = self.shared(x) if found else self._past(x)
            if found and self._shortcut:
                self._shortcut[0].taken()
            return y
        y = self.shared(x)
        past = self._shortcut[0].taken() if self._shortcut else x
        run, skip = found.to(y.dtype)
        mixed: Tensor = run * y + skip * past
        return mixed

    def policy(self, key: str) -> Tensor:
        """Return the logits of a task, of running and of skipping the block."""
        policy = self.own[key]
        assert isinstance(policy, Policy)
        return policy.logits

    def _past(self, x: Tensor) -> Tensor:
        if not self._shortcut:
            return x
        self._shortcut[0](x)
        return self._shortcut[0].taken()

    def _drawn(self) -> bool | Tensor:
        """Return whether the block runs, or the parts of its map and of its shortcut's."""
        search = self._search
        if search.kept:
            # A task that joined later has searched nothing, and runs all blocks.
            kept = search.kept.get(self._key)
            return kept is None or kept[self._number]
        if self._left > search.active:
            return True
        logits = self.policy(self._key)
        if not self.training:
            runs = logits[0] >= logits[1]
            return torch.stack([runs, ~runs]) if is_exporting() else bool(runs)
        seen = logits if search.learning else logits.detach()
        return F.gumbel_softmax(seen.float(), tau=search.heat)
