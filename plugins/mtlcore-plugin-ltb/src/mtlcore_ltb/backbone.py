"""Learning to branch: which stage goes on from which, drawn while it is learnt, then kept.

Guo, Lee and Ulbricht, "Learning to Branch for Multi-Task Learning", ICML 2020 (arXiv 2006.01895).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.models import (
    Backbone,
    BackbonePerTask,
    ExchangingBackbone,
    Places,
    Transition,
    is_exporting,
    joined,
)
from mtlcore.ranges import Decay, Fraction, Positive, Range
from mtlcore.tasks import Task

#: For each stage after the first one, and for the tasks: the number of what each goes on from.
Tree = tuple[tuple[Annotated[int, Range(ge=0, le=1000)], ...], ...]


@final
class LTB(ExchangingBackbone):
    """Copies of stages, as many as tasks, of which a tree is searched for and then trained.

    A copy i of a stage goes on from one copy j of the stage before, and a task from one copy of the
    last stage. While searching, every forward pass draws j anew with the probabilities
    `softmax(logits_i)`, by Gumbel-softmax: with g from a Gumbel distribution,

        d = softmax((logits_i + g) / temperature),

    the map of the largest d is the one that goes on, and derivatives are those of d (straight
    through). The temperature falls from `temperature` to `cold` as 1 / sqrt(1 + c p) does, where p
    is the part of the search that is done. In evaluation the likeliest copy is taken.

    When the search is over, each goes on from its likeliest copy for good, and everything but
    the logits, heads too, begins anew: the tree is trained from scratch. What no task goes on from
    any more learns nothing.

    Args:
        backbone: the network whose stages are copied, with its settings, such as {name = "resnet",
            depth = 18}. It must say where maps can be exchanged.
        exchange_at: numbers of the stages that branches may leave from, from 0 at the input;
            negative ones count from the end. Unset: all.
        search: part of the run after which the tree is kept. 1: the whole run searches; 0: it
            trains the tree that a run before found, named by `initial.run`, from the first step on.
        warmup: part of the search in which copies are drawn alike and logits do not learn.
        temperature: at the beginning of the search.
        cold: the temperature at its end.
        rate: learning rate of the logits divided by that of the networks.
        tree: branches that are given instead of searched for: for every stage that branches leave
            from a row with the number of a copy for each task, such as [[0, 0], [0, 1]].

    Raises:
        UsageError: the backbone names no such stages, the tree has another shape, or what begins
            anew after the search would lose weights that were read from a file.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        backbone: BackbonePerTask,
        exchange_at: Places = None,
        search: Fraction = 0.5,
        warmup: Decay = 0.01,
        temperature: Positive = 10.0,
        cold: Positive = 0.7,
        rate: Positive = 1.0,
        tree: Tree | None = None,
    ) -> None:
        super().__init__(tasks, backbone, exchange_at)
        self._tasks, self._make = tuple(tasks), backbone
        self._search, self._warmup, self._rate = search, warmup, rate
        self._hot, self._cold = temperature, cold
        self._done = 0.0
        self._tree = None if tree is None else [list(row) for row in tree]
        number, count = len(self.points), len(tasks)
        if self._tree is None:
            _check_beginning(self.wrapped(), search)
            # Equal ones: at first no copy is likelier than another.
            self.logits = nn.ModuleList(
                nn.ParameterDict({task.key: nn.Parameter(torch.zeros(count)) for task in tasks})
                for _ in range(number)
            )
        else:
            _check_tree(self._tree, number, count)
            self.logits = nn.ModuleList()

    def exchange(
        self, number: int, maps: Mapping[str, Tensor], wanted: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """Let each task's copy of the next stage go on from one copy of this one."""
        given = list(maps.values())
        if self._tree is None and self.training:
            stacked = torch.stack(given)
            return {task: self._drawn(self._of(number, task), stacked) for task in wanted}
        if self._tree is None and is_exporting():  # the likeliest, of which nobody knows the number
            stacked = torch.stack(given)
            return {task: _likeliest(self._of(number, task), stacked) for task in wanted}
        parents = self.tree()[number]
        places = {task: place for place, task in enumerate(self._keys)}
        # Copies: a network may write into what it reads, and others read it too.
        return {task: given[parents[places[task]]].clone() for task in wanted}

    def exchange_parameters(self, number: int, task: str) -> Iterable[Parameter]:
        """Return the task's logits."""
        return (self._of(number, task),) if self.logits else ()

    def tree(self) -> list[list[int]]:
        """Return for every stage the number of the copy from which each task's next one goes on.

        While searching, the likeliest.
        """
        if self._tree is not None:
            return self._tree
        return [
            [int(self._of(number, task).argmax()) for task in self._keys]
            for number in range(len(self.logits))
        ]

    def branches(self) -> dict[str, tuple[int, ...]]:
        """Return for each task the numbers of the copies that it runs through, from the input on.

        Two tasks share a stage where their numbers of it are the same.
        """
        tree = self.tree()
        found = {}
        for place, task in enumerate(self._keys):
            path = [tree[-1][place]]
            for parents in reversed(tree[:-1]):
                path.append(parents[path[-1]])
            found[task] = tuple(reversed(path))
        return found

    def at_progress(self, fraction: float) -> Transition | None:
        """Keep the tree, and begin anew, at the first step after the search.

        Raises:
            UsageError: nothing was searched.
        """
        inside = super().at_progress(fraction)
        self._done = fraction / self._search if self._search else 1.0
        if self._tree is not None or fraction < self._search:
            return inside
        if not self._search and not any(bool(logits.any()) for logits in self.logits.parameters()):
            raise UsageError(
                "model.backbone.search: 0 trains the tree that a run before found, and there is "
                "none: name that run by initial.run, or give model.backbone.tree"
            )
        self._tree = self.tree()
        for task in self._tasks:
            fresh = self._make([task])
            self._network(task.name).load_state_dict(fresh.state_dict())
        names = tuple(name for name, _ in self.named_parameters() if name.startswith("networks."))
        begun = Transition(reset=names, reset_heads=True, reset_balancer=True)
        return joined(inside, begun)

    def current_values(self) -> Mapping[str, Mapping[str, float]]:
        """Return the probability of each copy's likeliest parent, by stage."""
        found = dict(super().current_values())
        if self._tree is None:
            for number in range(len(self.logits)):
                found[f"branch/{number}"] = {
                    task: self._of(number, task).softmax(0).max().item() for task in self._keys
                }
        return found

    def parameter_groups(self) -> Iterator[dict[str, Any]]:
        """Yield the logits, which learn at a rate of their own and do not decay."""
        if self.logits:
            parameters = [*self.logits.parameters()]
            yield {"params": parameters, "lr_scale": self._rate, "weight_decay": 0.0}

    def get_extra_state(self) -> dict[str, list[list[int]] | None]:
        """Return the tree that is kept; None while it is searched for."""
        return {"tree": self._tree}

    def set_extra_state(self, state: dict[str, list[list[int]] | None]) -> None:
        """Restore what `get_extra_state` returned."""
        self._tree = state["tree"]

    def _drawn(self, logits: Parameter, stacked: Tensor) -> Tensor:
        """Return the map of a copy that is drawn, of all of them (K, B, ...)."""
        warming = self._done < self._warmup
        seen = torch.zeros_like(logits) if warming else logits
        drawn = F.gumbel_softmax(seen.float(), tau=self.heat(self._done), hard=True)
        mixed: Tensor = torch.tensordot(drawn.to(stacked.dtype), stacked, 1)
        return mixed

    def heat(self, done: float) -> float:
        """Return the temperature after a part of the search, 0 to 1."""
        ratio = (self._hot / self._cold) ** 2 - 1
        return float(self._hot / (1 + ratio * min(done, 1.0)) ** 0.5)

    def _of(self, number: int, task: str) -> Parameter:
        logits = self.logits[number]
        assert isinstance(logits, nn.ParameterDict)
        found: Parameter = logits[self._keys[task]]
        return found


def _likeliest(logits: Tensor, stacked: Tensor) -> Tensor:
    """Return the map of the likeliest copy, of all of them (K, B, ...)."""
    found = F.one_hot(logits.argmax(), len(logits)).to(stacked.dtype)
    chosen: Tensor = torch.tensordot(found, stacked, 1)
    return chosen


def _check_beginning(networks: Iterable[Backbone], search: float) -> None:
    """Refuse weights of a file that would be lost when the tree begins anew.

    Raises:
        UsageError: there are some.
    """
    if search < 1 and any("weights" in network.facts() for network in networks):
        raise UsageError(
            "model.backbone.search: after the search networks begin anew, at random, and weights "
            "are read of a file; let the whole run search (search=1), and give the tree that it "
            "finds to another run (model.backbone.tree)"
        )


def _check_tree(tree: Sequence[Sequence[int]], stages: int, tasks: int) -> None:
    """Refuse a tree that is not one of these stages.

    Raises:
        UsageError: it is not.
    """
    shape = [len(row) for row in tree]
    if shape != [tasks] * stages or any(not 0 <= place < tasks for row in tree for place in row):
        raise UsageError(
            f"model.backbone.tree: {[list(row) for row in tree]}; it needs {stages} rows, one for "
            f"each stage, of {tasks} numbers from 0 to {tasks - 1}"
        )
