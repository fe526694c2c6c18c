"""AdaShare: each task learns which residual blocks of one network it runs.

Sun, Panda, Feris and Saenko, "AdaShare: Learning What To Share For Efficient Deep Multi-Task
Learning", NeurIPS 2020 (arXiv 1911.12423).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import Features
from mtlcore.inputs import Inputs
from mtlcore.models import (
    Backbone,
    BackbonePerTask,
    ConditionedBackbone,
    Transition,
    joined,
)
from mtlcore.optimizers import Schedule
from mtlcore.ranges import Decay, Fraction, NonNegative, Positive
from mtlcore.tasks import Task
from mtlcore_adashare.blocks import Search, Shortcut, SkippableBlock


@final
class AdaShare(ConditionedBackbone):
    """A pass per task through one network, in which the task runs some residual blocks only.

    Task t runs block l with a probability that it learns, `softmax(logits_tl)[0]`. Phases of a run:

    1. for the part `warmup` of the search all tasks run all blocks;
    2. then weights and policies learn in turn, step by step. Every pass draws by Gumbel-softmax

           p = softmax((logits + g) / temperature),   y = p_0 F(x) + p_1 s(x),

       with the block's map F and its shortcut's s. At first the last block alone has a policy, then
       one more after the other until all have, after the part `curriculum` of this phase. In steps
       of the policies two terms are added: `sparsity` times the sum over tasks of the mean over
       these blocks of `-log softmax(logits)[1]`, and `sharing` times

           sum over pairs of tasks and blocks l = 1 ... L of (l / L) |logits_tl[0] - logits_ul[0]|;

    3. when the search is over, a policy is drawn for each task and block and kept, everything but
       the logits begins anew, and the network is trained from scratch. Blocks that a task skips
       cost it nothing but their shortcut.

    While searching, evaluation runs the blocks that are likelier run than skipped. The sampler
    `halves` gives policies samples that weights do not learn from.

    Args:
        encoder: the backbone inside, with its settings, such as {name = "resnet", depth = 18,
            output_stride = 8}. It must name its residual blocks.
        search: part of the run after which policies are kept. 1: the whole run searches; 0: it
            trains what a run before found, named by `initial.run`, from the first step on.
        warmup: part of the search without policies.
        curriculum: part of the rest of the search until all blocks have policies.
        temperature: of Gumbel-softmax, when policies begin.
        cold: at the end of the search; it falls by the same factor in equal times.
        sparsity: weight of the term that lets tasks skip blocks.
        sharing: weight of the term that lets tasks run the same blocks.
        rate: learning rate of the policies divided by that of the weights.
        decay: weight decay of the policies.

    Raises:
        UsageError: the encoder names no residual blocks, has weights of a file that would be lost
            after the search, or computes maps again in the backward pass.
    """

    reads_through = "encoder"

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        encoder: BackbonePerTask,
        search: Fraction = 0.5,
        warmup: Decay = 0.2,
        curriculum: Fraction = 0.07,
        temperature: Positive = 5.0,
        cold: Positive = 0.02,
        sparsity: NonNegative = 0.05,
        sharing: NonNegative = 0.05,
        rate: Positive = 10.0,
        decay: NonNegative = 5e-4,
    ) -> None:
        super().__init__(tasks, "model.backbone.encoder", encoder)
        if search < 1 and "weights" in self.encoder.facts():
            raise UsageError(
                "model.backbone.search: after the search the encoder begins anew, at random, and "
                "weights are read of a file; let the whole run search (search=1)"
            )
        self._tasks, self._make = tuple(tasks), encoder
        self._until, self._warmup, self._curriculum = search, warmup, curriculum
        self._hot, self._cold = temperature, cold
        self._sparsity, self._sharing = sparsity, sharing
        self._rate, self._decay = rate, decay
        self._search = Search(heat=temperature)
        self._steps = 0
        _let_skip(self._tasks, self.encoder, self._search)
        self.train(self.training)

    def forward(self, inputs: Inputs, tasks: Sequence[str]) -> Features:
        """Compute the features of each task by itself, and the terms of the policies."""
        features = super().forward(inputs, tasks)
        if not self.training or not self._search.learning:
            return features
        return replace(features, terms={**features.terms, **self._terms()})

    def policies(self) -> dict[str, list[float]]:
        """Return for each task the probability with which it runs each block; 0 or 1 if kept."""
        kept, blocks = self._search.kept, self.blocks()
        if kept:
            every = [True] * len(blocks)
            return {task.name: [*map(float, kept.get(task.key, every))] for task in self._tasks}
        return {
            task.name: [block.policy(task.key).softmax(0)[0].item() for block in blocks]
            for task in self._tasks
        }

    def blocks(self) -> list[SkippableBlock]:
        """Return the blocks, from the input on."""
        return [layer for layer in self._task_layers() if isinstance(layer, SkippableBlock)]

    def at_progress(self, fraction: float) -> Transition | None:
        """Say what the coming step learns; at the first one after the search keep the policies.

        Raises:
            UsageError: nothing was searched.
        """
        inside = super().at_progress(fraction)
        self._steps = 0 if fraction == 0 else self._steps + 1
        search = self._search
        search.learning = False
        if search.kept:
            return inside
        if fraction < self._until:
            part = (fraction / self._until - self._warmup) / (1 - self._warmup)
            if part >= 0:
                search.heat = self._hot * (self._cold / self._hot) ** part
                search.active = self.active(part)
                # Batches of the one half of `halves` have even numbers, of the other odd ones.
                search.learning = self._steps % 2 == 1
            return inside
        return joined(inside, self._keep())

    def active(self, part: float) -> int:
        """Return how many of the last blocks have a policy, after a part of the search for them."""
        more = len(self.blocks()) - 1
        grown = 1.0 if not self._curriculum else min(1.0, part / self._curriculum)
        return 1 + int(more * grown)

    def learn_alone(self) -> Iterable[Parameter]:
        """Return the policies, in steps that are theirs."""
        own = super().learn_alone()
        return [*own, *self._logits()] if self._search.learning else own

    def current_values(self) -> Mapping[str, Mapping[str, float]]:
        """Return the probability with which each task runs each block."""
        found = dict(super().current_values())
        for task, chances in self.policies().items():
            for number, chance in enumerate(chances):
                found[f"run/{number}"] = {**found.get(f"run/{number}", {}), task: chance}
        return found

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return none: a task may skip the last block."""
        return ()

    def parameter_groups(self) -> Iterator[dict[str, Any]]:
        """Yield the policies, which learn at a constant rate of their own."""
        yield {
            "params": self._logits(),
            "lr_scale": self._rate,
            "weight_decay": self._decay,
            "schedule": Schedule(name="constant"),
        }

    def get_extra_state(self) -> dict[str, Any]:
        """Return the policies that are kept, how many blocks have some, and steps begun."""
        search = self._search
        return {"kept": search.kept, "active": search.active, "steps": self._steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        self._search.kept, self._search.active = state["kept"], state["active"]
        self._steps = state["steps"]

    def _logits(self) -> list[Parameter]:
        return [p for block in self.blocks() for p in block.own.parameters()]

    def _terms(self) -> dict[str, Tensor]:
        """Return what lets tasks skip blocks, and run the same ones."""
        blocks, active = self.blocks(), self._search.active
        logits = {
            task.key: torch.stack([block.policy(task.key) for block in blocks])
            for task in self._tasks
        }
        skipped = [-F.log_softmax(x[-active:], 1)[:, 1].mean() for x in logits.values()]
        terms = {"sparsity": self._sparsity * torch.stack(skipped).sum()}
        deeper = torch.arange(1, len(blocks) + 1, device=skipped[0].device) / len(blocks)
        apart = [
            (deeper * (one[:, 0] - other[:, 0]).abs()).sum()
            for one, other in combinations(logits.values(), 2)
        ]
        if apart:
            terms["sharing"] = self._sharing * torch.stack(apart).sum()
        return terms

    def _keep(self) -> Transition:
        """Draw the policies that are kept, and let everything but them begin anew."""
        logits = self._logits()
        if not self._until and not any(bool((p[0] != p[1]).any()) for p in logits):
            raise UsageError(
                "model.backbone.search: 0 trains what a run before found, and no policy has been "
                "learnt: name that run by initial.run"
            )
        chances = {
            task.key: torch.stack([block.policy(task.key).detach() for block in self.blocks()])
            for task in self._tasks
        }
        self._search.kept = {
            key: (torch.rand(len(x)) < x.softmax(1)[:, 0].cpu()).tolist()
            for key, x in chances.items()
        }
        fresh = self._make(self._tasks)
        _let_skip(self._tasks, fresh, Search())
        own = self.encoder.state_dict()
        anew = {name: x for name, x in fresh.state_dict().items() if not _is_policy(name)}
        self.encoder.load_state_dict({**own, **anew})
        names = [f"encoder.{name}" for name, _ in self.encoder.named_parameters()]
        reset = tuple(name for name in names if not _is_policy(name))
        return Transition(reset=reset, reset_heads=True, reset_balancer=True)


def _is_policy(name: str) -> bool:
    return name.endswith(".logits") and ".own." in name


def _let_skip(tasks: Sequence[Task], encoder: Backbone, search: Search) -> None:
    """Put a block that tasks can skip in the place of each residual block, in place.

    Raises:
        UsageError: the encoder names none.
    """
    blocks = encoder.residual_blocks()
    if not blocks:
        raise UsageError(
            f"model.backbone.encoder: {type(encoder).__name__} names no residual blocks that a "
            "task could skip; choose a ResNet, such as resnet or one of timm"
        )
    for number, block in enumerate(blocks):
        shortcut = None
        if block.shortcut is not None:
            parent, _, last = block.shortcut.rpartition(".")
            shortcut = Shortcut(encoder.get_submodule(block.shortcut))
            setattr(encoder.get_submodule(parent), last, shortcut)
        parent, _, last = block.name.rpartition(".")
        made = SkippableBlock(
            tasks,
            encoder.get_submodule(block.name),
            shortcut,
            left=len(blocks) - number,
            number=number,
            search=search,
        )
        setattr(encoder.get_submodule(parent), last, made)
